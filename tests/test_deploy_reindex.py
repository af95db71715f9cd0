# ruff: noqa: F811 (fixtures are used by importing them)
"""Runs on a schedule: manifests that Kubernetes takes, a line that cron takes, the one command."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from ray.dashboard.modules.job.cli import submit as ray_job_submit
from test_deploy import DEPLOY, ROOT, configuration, pods, rayjob  # noqa: F401

KUBERNETES = json.loads((ROOT / "tests/data/kubernetes/cronjob-1.31.json").read_text())
REINDEX = ["python", "-m", "pipelines.reindex", "conf/wiki.yaml"]


def test_reindex_command_of_all_three_is_parsed_and_writes_to_a_bucket() -> None:
    assert "://" in configuration(REINDEX).index.uri


def violations(manifest: Any, kind: str) -> list[str]:
    """Of Kubernetes' schema, which knows every field: an unknown one is a typing error."""
    part = {"$defs": KUBERNETES["$defs"], "$ref": f"#/$defs/{kind}"}
    schema = KUBERNETES if kind == "CronJob" else part
    return [
        f"{error.json_path}: {error.message}"
        for error in Draft202012Validator(schema).iter_errors(manifest)
    ]


@pytest.fixture(scope="module")
def cronjob() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "reindex-cronjob.yaml").read_text())


def test_violations_of_the_schema_are_found(cronjob: dict[str, Any]) -> None:
    spec = cronjob["spec"] | {"concurencyPolicy": "Forbid"}
    (line,) = violations(cronjob | {"spec": spec}, "CronJob")
    assert "concurencyPolicy" in line


def test_rayjob_pods_are_what_kubernetes_takes(pods: list[tuple[int, dict[str, Any]]]) -> None:
    assert [line for _, pod in pods for line in violations(pod, "PodSpec")] == []


def test_reindex_cronjob_is_what_kubernetes_takes(cronjob: dict[str, Any]) -> None:
    assert violations(cronjob, "CronJob") == []
    job = cronjob["spec"]["jobTemplate"]["spec"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # where podFailurePolicy is


def test_reindex_cronjob_leaves_to_people_what_trying_again_does_not_help(
    cronjob: dict[str, Any],
) -> None:
    job = cronjob["spec"]["jobTemplate"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    by_code, disrupted = job["podFailurePolicy"]["rules"]
    assert by_code == {
        "action": "FailJob",
        "onExitCodes": {"containerName": container["name"], "operator": "In", "values": [2, 3]},
    }
    assert disrupted["action"] == "FailJob"
    assert job["backoffLimit"] > 0
    assert cronjob["spec"]["concurrencyPolicy"] == "Forbid"


def test_reindex_cronjob_submits_the_command_from_the_image_of_the_cluster(
    cronjob: dict[str, Any], pods: list[tuple[int, dict[str, Any]]]
) -> None:
    (container,) = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == pods[0][1]["containers"][0]["image"]
    assert container["command"] == ["bash", "-c"]
    submit, code = container["args"][0].replace("\\\n", " ").split("\n", 1)
    words = shlex.split(submit)
    split = words.index("--")
    given = ray_job_submit.make_context("submit", words[3:]).params
    assert words[:3] == ["ray", "job", "submit"]
    assert not given["no_wait"]
    assert words[split + 1 :] == REINDEX
    program, dash_c, script = shlex.split(code.removeprefix("exec "))
    assert (program, dash_c) == ("python", "-c")
    assert given["submission_id"] in script  # both mean the same job
    compile(script, "args", "exec")


def test_reindex_rayjob_is_the_rayjob_with_another_command(rayjob: dict[str, Any]) -> None:
    ours = yaml.safe_load((DEPLOY / "reindex-rayjob.yaml").read_text())
    assert shlex.split(ours["spec"]["entrypoint"]) == REINDEX
    assert ours["spec"]["backoffLimit"] <= 1  # it tries again what a gate stopped
    mine = {"entrypoint", "backoffLimit"}
    same, theirs = (
        {key: value for key, value in job["spec"].items() if key not in mine}
        for job in (ours, rayjob)
    )
    assert same == theirs
    assert ours["metadata"] != rayjob["metadata"]
    assert {key: ours[key] for key in ("apiVersion", "kind")} == {
        key: rayjob[key] for key in ("apiVersion", "kind")
    }


def test_reindex_crontab_is_one_line_that_cron_takes() -> None:
    lines = (DEPLOY / "crontab").read_text().splitlines()
    (line,) = [line for line in lines if line and not line.startswith("#")]
    *times, command = line.split(maxsplit=5)
    for field, most in zip(times, (59, 23, 31, 12, 7), strict=True):
        assert field == "*" or 0 <= int(field) <= most
    assert "%" not in command  # a line end to cron
    _, run = command.split(" && ")
    words = shlex.split(run.partition(" 2>> ")[0])
    assert [Path(words[0]).name, *words[1:]] == REINDEX
    assert '|| echo "' in run
    assert "$?" in run
