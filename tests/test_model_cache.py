"""Model folders on object storage: copied once, whole, and again when they change."""

# ruff: noqa: F811 (fixtures are used by importing them)
from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import ROOT
from s3_server import KEY, SECRET, Fault, S3Server, s3_server  # noqa: F401

from actors.config import ModelConfig
from actors.encoder import load_encoder
from actors.errors import ModelError
from actors.models.cache import local_copy
from actors.models.files import resolve_model

BERT = ROOT / "tests/data/oracle/models/bge-small-en-v1.5"


@pytest.fixture
def stored(
    s3_bucket: tuple[str, dict[str, Any]],
    s3_server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """The URI of a model folder; credentials and endpoint are in the environment."""
    bucket, options = s3_bucket
    uri = f"{bucket}/models/bert"
    fs = fsspec.core.url_to_fs(uri, **options)[0]
    fs.put(f"{BERT}/", uri, recursive=True)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    s3_server.requests.clear()
    return uri


def downloads(server: S3Server) -> int:
    return sum(
        method == "GET" and path.endswith("model.safetensors") for method, path in server.requests
    )


def test_load_encoder_from_a_uri_equals_the_folder(stored: str) -> None:
    texts = ["one text", "another one"]
    here = load_encoder(ModelConfig(name=str(BERT))).encode_passages(texts)
    assert load_encoder(ModelConfig(name=stored)).encode_passages(texts) == here


def test_local_copy_again_downloads_nothing(stored: str, s3_server: S3Server) -> None:
    assert local_copy(stored) == local_copy(stored)
    assert downloads(s3_server) == 1


def test_local_copy_of_threads_and_processes_is_downloaded_once(
    stored: str, s3_server: S3Server
) -> None:
    code = f"from actors.models.cache import local_copy; local_copy({stored!r})"
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(2)]
    threads = [threading.Thread(target=local_copy, args=(stored,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [process.wait(60) for process in processes] == [0, 0]
    assert downloads(s3_server) == 1


def test_local_copy_of_changed_files_is_another(
    stored: str, s3_bucket: tuple[str, dict[str, Any]]
) -> None:
    first = local_copy(stored)
    fs = fsspec.core.url_to_fs(stored, **s3_bucket[1])[0]
    fs.pipe_file(f"{stored}/notes.json", b"{}")
    second = local_copy(stored)
    assert second != first
    assert (second / "notes.json").read_bytes() == b"{}"


def test_local_copy_that_fails_leaves_nothing_and_may_be_tried_again(
    stored: str, s3_server: S3Server, tmp_path: Path
) -> None:
    s3_server.faults.append(Fault("GET", "model.safetensors", 403, "AccessDenied", times=50))
    with pytest.raises(ModelError, match="the download failed"):
        local_copy(stored)
    kept = [path.name for path in (tmp_path / "cache/packvec/models").iterdir()]
    assert all(name.endswith(".lock") for name in kept)
    s3_server.faults.clear()
    assert (local_copy(stored) / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("tail", "message"),
    [("/nothing", "found nothing"), ("/../other", "found nothing")],
)
def test_resolve_model_of_an_empty_place_is_model_error(
    stored: str, tail: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        resolve_model(ModelConfig(name=stored + tail))


def test_resolve_model_of_an_unknown_store_is_model_error() -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        resolve_model(ModelConfig(name="nonsense://models/bert"))
