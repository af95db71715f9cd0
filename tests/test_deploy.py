"""What is deployed agrees with the code: manifest, Dockerfile and the guide's commands."""

from __future__ import annotations

import re
import shlex
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import ray
import typer
import yaml
from ray.dashboard.modules.job.cli import submit as ray_job_submit

from pipelines import embed_corpus, reindex, show_index
from pipelines.cluster.ray_cluster import pool_for
from pipelines.config import RunConfig, load_config, parse_config

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "conf/deploy"
GUIDE = (ROOT / "docs/cluster.md").read_text()
COMMANDS = {
    "pipelines.embed_corpus": typer.main.get_command(embed_corpus.app),
    "pipelines.reindex": typer.main.get_command(reindex.app),
    "pipelines.show_index": typer.main.get_command(show_index.app),
}


def blocks(language: str) -> list[str]:
    """The guide's code blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """Lines as words: continued lines joined, blank lines and comments left out."""
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line]


GUIDE_COMMANDS = commands("".join(blocks("sh")))


def parameters(words: list[str]) -> dict[str, Any]:
    """What the command line `python -m <module> ...` gives its command; fails on unknown flags."""
    python, dash_m, module, *arguments = words
    assert (python, dash_m) == ("python", "-m")
    return COMMANDS[module].make_context(module, arguments).params


def configuration(words: list[str]) -> RunConfig:
    """The configuration such a command line runs."""
    given = parameters(words)
    return load_config(ROOT / given["config"], given["overrides"] or [])


@pytest.fixture(scope="module")
def rayjob() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())


@pytest.fixture(scope="module")
def pods(rayjob: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """(how many, pod) of the head and of each worker group."""
    cluster = rayjob["spec"]["rayClusterSpec"]
    groups = [{"replicas": 1} | cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [(group["replicas"], group["template"]["spec"]) for group in groups]


@pytest.fixture(scope="module")
def pinned_ray() -> str:
    pins = (line.partition("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    return next(version for name, _, version in pins if name == "ray")


@pytest.fixture(scope="module")
def dockerfile() -> list[list[str]]:
    return commands((DEPLOY / "Dockerfile").read_text())


def test_rayjob_versions_are_the_pinned_ones(
    rayjob: dict[str, Any], pods: list[tuple[int, dict[str, Any]]], pinned_ray: str
) -> None:
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {container["image"] for _, pod in pods for container in pod["containers"]}
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == pinned_ray
    assert len(images) == 1
    assert images.pop().endswith(f"/packvec:{ours}-ray{pinned_ray}")


def test_rayjob_entrypoint_parsed_by_the_command_loads_a_cluster_configuration(
    rayjob: dict[str, Any],
) -> None:
    config = configuration(shlex.split(rayjob["spec"]["entrypoint"]))
    assert "://" in config.source.uri
    assert "://" in config.index.uri


def test_rayjob_workers_with_their_limits_hold_an_encoder_per_gpu(
    rayjob: dict[str, Any],
    pods: list[tuple[int, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resources = {"GPU": 0.0, "CPU": 0.0}
    for replicas, pod in pods[1:]:  # the head gives Ray no CPUs
        limits = pod["containers"][0]["resources"]["limits"]
        resources["GPU"] += replicas * int(limits["nvidia.com/gpu"])
        resources["CPU"] += replicas * int(limits["cpu"])
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    config = configuration(shlex.split(rayjob["spec"]["entrypoint"]))
    assert rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert pool_for(config.ray).actors == resources["GPU"]


def test_rayjob_pods_mount_volumes_they_have(pods: list[tuple[int, dict[str, Any]]]) -> None:
    for _, pod in pods:
        volumes = {volume["name"] for volume in pod["volumes"]}
        mounts = {mount["name"] for c in pod["containers"] for mount in c["volumeMounts"]}
        assert mounts == volumes


def test_dockerfile_copies_exist_and_hold_every_package(dockerfile: list[list[str]]) -> None:
    copies = [words[1:-1] for words in dockerfile if words[0] == "COPY"]
    sources = set(chain.from_iterable(copies))
    assert {source for source in sources if not (ROOT / source).exists()} == set()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = project["tool"]["setuptools"]["packages"]["find"]["include"]
    needed = {name.rstrip("*") for name in found} | {"conf", "constraints.txt"}
    assert needed <= sources


def test_dockerfile_runs_as_an_ordinary_user(
    dockerfile: list[list[str]], pods: list[tuple[int, dict[str, Any]]]
) -> None:
    user = next(words[1] for words in reversed(dockerfile) if words[0] == "USER")
    assert int(user) > 0
    assert {pod["securityContext"]["fsGroup"] for _, pod in pods} == {int(user)}


@pytest.mark.parametrize("words", GUIDE_COMMANDS, ids=" ".join)
def test_guide_command_parses_and_names_files_that_exist(words: list[str]) -> None:
    if words[:3] == ["ray", "job", "submit"]:
        split = words.index("--")
        ray_job_submit.make_context("submit", words[3:])
        words = words[split + 1 :]
    if words[0] == "python" and "config" in parameters(words):
        assert "://" in configuration(words).index.uri
    for word in words:
        if word.startswith(("conf/", "docs/")):
            assert (ROOT / word).exists()


def test_guide_build_command_tags_the_image_of_the_rayjob(
    pods: list[tuple[int, dict[str, Any]]],
) -> None:
    build, push = [words for words in GUIDE_COMMANDS if words[0] == "docker"]
    image = pods[0][1]["containers"][0]["image"]
    assert build[build.index("-t") + 1] == image
    assert push == ["docker", "push", image]


def test_guide_flags_in_the_text_are_flags_of_a_command() -> None:
    options = [*COMMANDS["pipelines.embed_corpus"].params, *ray_job_submit.params]
    known = set(chain.from_iterable(option.opts for option in options))
    prose = re.sub(r"^```.*?^```", "", GUIDE, flags=re.DOTALL | re.MULTILINE)
    assert set(re.findall(r"`(--[a-z-]+)", prose)) <= known


def test_guide_configuration_keys_in_the_text_exist() -> None:
    defaults = load_config(ROOT / "conf/wiki.yaml")
    keys = re.findall(r"`([a-z]+)\.([a-z_]+)`", GUIDE)
    unknown = [key for key in keys if not hasattr(getattr(defaults, key[0], None), key[1])]
    assert keys
    assert unknown == []


@pytest.mark.parametrize("block", blocks("yaml"))
def test_guide_yaml_over_the_wiki_configuration_is_accepted(block: str) -> None:
    raw = yaml.safe_load((ROOT / "conf/wiki.yaml").read_text())
    changes = yaml.safe_load(block)
    assert parse_config(raw | {name: raw[name] | part for name, part in changes.items()})


def test_guide_model_download_is_the_configured_model() -> None:
    config = load_config(ROOT / "conf/wiki.yaml")
    words = shlex.split(blocks("dockerfile")[0].replace("\\\n", " "))
    assert words[words.index("download") + 1] == config.model.name
    assert words[words.index("--revision") + 1] == config.model.revision
