"""Scores of pairs on the pipeline: FlagEmbedding's, no row lost, resumed where it broke."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from typer.testing import CliRunner

from actors.encoded import EncodedBatch
from actors.errors import EmbedError, IndexStateError, SourceError
from actors.pair_scorer import PairScorer
from actors.reranker import load_reranker
from pipelines.compact_index import app as compact
from pipelines.config import PairsConfig, RunConfig, parse_as, read_yaml
from pipelines.config.__main__ import app as config_app
from pipelines.embed_corpus import embed_corpus
from pipelines.estimate.confirm import Permit
from pipelines.evaluation.evaluate import modes_of
from pipelines.index import open_index
from pipelines.plan.plan import read_done
from pipelines.reindex import reindex
from pipelines.reports.html import Note
from pipelines.reports.run_report import read_run
from pipelines.rerank_pairs import app, rerank_pairs
from pipelines.search.space import read_space
from pipelines.store import open_store
from pipelines.verify_index import verify

ORACLE = ROOT / "tests/data/oracle"
EXPECTED = json.loads((ORACLE / "reranker_expected.json").read_text(encoding="utf-8"))
PAIRS = [{"query": query, "passage": passage} for query, passage in EXPECTED["PAIRS"]]
MODEL = str(ORACLE / "models/bge-reranker-v2-m3")
WORDS = "the old stone bridge over a river near the king's city was built long ago".split()  # noqa: SIM905

Make = Callable[..., PairsConfig]


def many(count: int) -> list[dict[str, Any]]:
    """Different pairs of several lengths."""
    return [
        {"query": WORDS[i % 5], "passage": " ".join([*WORDS[i % 7 : i % 13 + 1], str(i)])}
        for i in range(count)
    ]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def config(rows: list[dict[str, Any]] | Path, **sections: Any) -> PairsConfig:
        path = tmp_path / "pairs.parquet"
        if isinstance(rows, list):
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=12)
        raw: dict[str, Any] = {
            "source": {"uri": str(path if isinstance(rows, list) else rows)},
            "index": {"uri": str(tmp_path / "scores")},
            "reranker": {"name": MODEL, "max_length": 96, "dtype": "float32", "device": "cpu"},
            "slice": {"documents": 5},
            "ray": {"engine": "in_process", "actors": 1},
            "max_reject_fraction": 1.0,
        }
        for name, value in sections.items():
            raw[name] = raw[name] | value if isinstance(raw[name], dict) else value
        return parse_as(PairsConfig, raw, "test")

    return config


def rows_of(config: PairsConfig) -> list[dict[str, Any]]:
    """In the order of the source."""
    rows: list[dict[str, Any]] = open_index(config.index.uri).to_table().to_pylist()
    return sorted(rows, key=lambda row: int(row["doc_id"].rpartition(":")[2]))


def rejects_of(config: PairsConfig) -> list[tuple[int, str]]:
    table = open_index(config.index.uri).rejects().sort_by([("unit", "ascending")])
    return sorted(zip(table["position"].to_pylist(), table["code"].to_pylist(), strict=True))


def nonces(config: PairsConfig, run_id: str) -> dict[tuple[int, int], str]:
    """Of each slice that is done: who did it."""
    done = read_done(open_store(config.index.uri), run_id)
    return {(record.unit, record.first_document): record.nonce for record in done}


# What comes out


@pytest.mark.parametrize(
    ("key", "name", "options"),
    [
        ("reranker.scores", "bge-reranker-v2-m3", {}),
        ("llmreranker.scores", "bge-reranker-v2-gemma", {}),
        ("layerwise.cut2_4", "bge-reranker-v2-minicpm-layerwise", {"cutoff_layers": [2, 4]}),
        (
            "lightweight.cut3_c2",
            "bge-reranker-v2.5-gemma2-lightweight",
            {"cutoff_layers": [3], "compress_ratio": 2, "compress_layers": [2]},
        ),
    ],
)
def test_scores_equal_flag_embeddings(
    make: Make, key: str, name: str, options: dict[str, Any]
) -> None:
    config = make(PAIRS, reranker={"name": str(ORACLE / "models" / name), **options})
    manifest = rerank_pairs(config)
    rows = rows_of(config)
    scores = np.array([row["score"] for row in rows])
    np.testing.assert_allclose(scores.T, np.array(EXPECTED[key]), rtol=1e-5, atol=1e-5)
    assert [{"query": row["query"], "passage": row["text"]} for row in rows] == PAIRS
    assert manifest.outputs == ["score"]
    assert not verify(open_store(config.index.uri), deep=True).problems.lines()


def test_pairs_without_a_text_are_rejects_and_empty_ones_are_scored(make: Make) -> None:
    rows = [*many(4), *({"query": q, "passage": p} for q, p in (("", ""), ("a", ""), ("", "b")))]
    rows += [{"query": None, "passage": "x"}, {"query": "x", "passage": None}]
    config = make(rows)
    manifest = rerank_pairs(config)
    assert rejects_of(config) == [(7, "null_query"), (8, "null_text")]
    assert manifest.counts.documents == 7
    assert np.isfinite([row["score"] for row in rows_of(config)]).all()


def test_ids_of_pairs_are_the_sources_where_it_has_some(make: Make) -> None:
    ids = ["a", "b", None, "a", ""]
    rows = [{**row, "pair": i, "label": 7} for row, i in zip(many(5), ids, strict=True)]
    config = make(rows, source={"columns": {"id": "pair", "metadata": ["label"]}})
    rerank_pairs(config)
    table = open_index(config.index.uri).to_table(["doc_id", "label"])
    assert sorted(table.to_pylist(), key=str) == [{"doc_id": i, "label": 7} for i in "ab"]
    assert rejects_of(config) == [(2, "missing_id"), (3, "duplicate_id"), (4, "missing_id")]


@pytest.mark.parametrize("too_long", ["truncate", "refuse"])
def test_pair_that_is_too_long_is_cut_or_a_reject_as_configured(make: Make, too_long: str) -> None:
    long = {"query": "bridge", "passage": "stone " * 400}
    config = make([*many(3), long, *many(2)], reranker={"too_long": too_long})
    manifest = rerank_pairs(config)
    refused = too_long == "refuse"
    assert rejects_of(config) == ([(3, "too_long")] if refused else [])
    assert manifest.counts.truncated == (0 if refused else 1)
    assert [row["truncated"] for row in rows_of(config)].count(True) == (0 if refused else 1)


def test_equal_pairs_of_a_slice_are_scored_once(make: Make) -> None:
    config = make([*many(2), *many(2), *many(1)])
    manifest = rerank_pairs(config)
    assert (manifest.counts.encoded, manifest.counts.reused) == (2, 3)
    scores = [row["score"] for row in rows_of(config)]
    assert scores[:2] == scores[2:4]
    assert scores[4] == scores[0]


def test_jsonl_and_compacted_scores_are_the_same_rows(make: Make, tmp_path: Path) -> None:
    rows = many(30)
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        "".join(json.dumps({"q": r["query"], "p": {"text": r["passage"]}}) + "\n" for r in rows)
    )
    config = make(path, source={"columns": {"query": "q", "text": "p.text"}})
    rerank_pairs(config)
    before = open_index(config.index.uri).to_table().sort_by("doc_id")
    assert set(zip(before["q"].to_pylist(), before["text"].to_pylist(), strict=True)) == {
        (row["query"], row["passage"]) for row in rows
    }
    result = CliRunner().invoke(compact, [config.index.uri])
    assert result.exit_code == 0, result.output
    assert open_index(config.index.uri).to_table().sort_by("doc_id") == before


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
    ids=str,
)
def test_query_of_every_type_of_text_comes_out_as_strings(
    make: Make, tmp_path: Path, kind: pa.DataType
) -> None:
    queries = pa.array(["a", None, "", "a"]).cast(kind)
    table = pa.table({"passage": pa.array(["x", "y", "z", "x"]).cast(kind), "query": queries})
    pq.write_table(table, tmp_path / "typed.parquet")
    config = make(tmp_path / "typed.parquet")
    rerank_pairs(config)
    assert open_index(config.index.uri).schema.field("query").type == pa.string()
    found = [(row["query"], row["text"]) for row in rows_of(config)]
    assert found == [("a", "x"), ("", "z"), ("a", "x")]
    assert rejects_of(config) == [(1, "null_query")]


def test_files_of_a_folder_may_write_their_queries_in_different_types(
    make: Make, tmp_path: Path
) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    kinds = [pa.large_string(), pa.string(), pa.dictionary(pa.int32(), pa.string()), pa.null()]
    for number, kind in enumerate(kinds):
        queries = pa.nulls(1) if kind == pa.null() else pa.array(["q"]).cast(kind)
        table = pa.table({"query": queries, "passage": [str(number)]})
        pq.write_table(table, folder / f"{number}.parquet")
    config = make(folder)
    manifest = rerank_pairs(config)
    assert (manifest.counts.documents, manifest.counts.rejects) == (3, {"null_query": 1})


def test_query_of_jsonl_that_is_no_string_is_a_reject_as_a_passage_is(
    make: Make, tmp_path: Path
) -> None:
    path = tmp_path / "pairs.jsonl"
    queries: list[Any] = ["a", 1, ["a"], {"a": 1}, None, "", True]
    lines = [{"query": query, "passage": "x"} for query in queries] + [{"passage": "x"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = make(path)
    assert rerank_pairs(config).counts.rejects == {"bad_record": 4, "null_query": 2}
    assert [row["query"] for row in rows_of(config)] == ["a", ""]


def test_passages_are_left_out_where_texts_are_not_to_be_stored(make: Make) -> None:
    config = make(many(6), index={"store_text": False})
    rerank_pairs(config)
    index = open_index(config.index.uri)
    assert "text" not in index.schema.names
    assert index.to_table()["query"].to_pylist() == [row["query"] for row in many(6)]


def test_report_of_a_run_counts_pairs(make: Make) -> None:
    config = make(many(6))
    rerank_pairs(config)
    run = read_run(config.index.uri)
    assert ("pairs", "6") in run.facts().items
    assert not {"documents", "passages"} & {name for name, _ in run.facts().items}
    assert run.rejects() == Note("Every pair is in the index.")


def test_pairs_and_scores_may_lie_on_s3(
    make: Make, s3_bucket: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    uri, options = s3_bucket
    store = open_store(uri, options)
    pq.write_table(pa.Table.from_pylist(many(12)), tmp_path / "pairs.parquet")
    store.upload(tmp_path / "pairs.parquet", "pairs.parquet")
    place = {"uri": f"{uri}/scores", "storage_options": options}
    source = {"uri": f"{uri}/pairs.parquet", "storage_options": options}
    config = make(many(12), source=source, index=place)
    assert rerank_pairs(config).counts.documents == 12
    assert rerank_pairs(config).generation == 1  # all is done
    found = open_index(place["uri"], options).to_table()
    assert found["text"].to_pylist() == [row["passage"] for row in many(12)]
    rerank_pairs(make(many(12)))
    assert found["score"] == open_index(str(tmp_path / "scores")).to_table()["score"]


# Where it breaks


def test_run_that_broke_goes_on_where_it_stopped(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, stream, slices = make(many(40)), PairScorer.stream, 0

    def breaks(self: PairScorer, tokens: Any, /) -> Any:
        nonlocal slices
        slices += 1
        if slices == 4:
            raise EmbedError("the power is gone")
        return stream(self, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(PairScorer, "stream", breaks)
        with pytest.raises(EmbedError, match="the power is gone"):
            rerank_pairs(config)
    with pytest.raises(IndexStateError):
        open_index(config.index.uri)
    run_id = next(Path(config.index.uri, "runs").iterdir()).name
    kept = {
        (d.unit, d.first_document): d.nonce for d in read_done(open_store(config.index.uri), run_id)
    }
    assert len(kept) == 3
    rerank_pairs(config)
    done = {
        (d.unit, d.first_document): d.nonce for d in read_done(open_store(config.index.uri), run_id)
    }
    assert done.items() >= kept.items()
    assert [row["text"] for row in rows_of(config)] == [row["passage"] for row in many(40)]
    assert rerank_pairs(config).generation == 1  # all is done


def test_pair_that_cannot_be_scored_fails_alone_and_is_scored_by_a_replay(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, stream = make(many(12)), PairScorer.stream

    def bad(self: PairScorer, tokens: Any, /) -> Any:
        for batch in stream(self, tokens):
            failures = {batch.start + 1: "NaN or Inf in its score"}
            yield EncodedBatch(batch.start, batch.stop, batch.columns, failures)

    with monkeypatch.context() as patch:
        patch.setattr(PairScorer, "stream", bad)
        rerank_pairs(config)
    assert rejects_of(config) == [(1, "encoder_error"), (6, "encoder_error"), (11, "encoder_error")]
    assert len(rows_of(config)) == 9
    rerank_pairs(config, replay_rejects=True)
    assert rejects_of(config) == []
    assert [row["text"] for row in rows_of(config)] == [row["passage"] for row in many(12)]
    assert not verify(open_store(config.index.uri), deep=True).problems.lines()


def test_scores_that_are_no_numbers_are_found_by_deep_verification(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, stream = make(many(5)), PairScorer.stream

    def spoilt(self: PairScorer, tokens: Any, /) -> Any:
        for batch in stream(self, tokens):
            columns = pa.table({"score": np.full(batch.stop - batch.start, np.nan, np.float32)})
            yield EncodedBatch(batch.start, batch.stop, columns, {})

    monkeypatch.setattr(PairScorer, "stream", spoilt)
    rerank_pairs(config)
    (line,) = verify(open_store(config.index.uri), deep=True).problems.lines()
    assert "finite numbers in score, found 5 exceptions" in line


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"query": "question"}, r"source\.columns\.query: expected a column 'question' in"),
        ({"query": "number"}, r"source\.columns\.query: expected strings in 'number'"),
        ({"text": "number"}, r"source\.columns\.text: expected strings in 'number'"),
        ({"metadata": ["label"]}, r"source\.columns\.metadata\[0\]: expected a column 'label'"),
    ],
)
def test_columns_that_are_not_there_are_refused_by_their_keys(
    make: Make, columns: dict[str, Any], message: str
) -> None:
    config = make([{**row, "number": 1} for row in many(2)], source={"columns": columns})
    with pytest.raises(SourceError, match=message):
        rerank_pairs(config)


def test_other_pairs_or_another_reranker_are_refused_over_committed_scores(make: Make) -> None:
    config = make(many(3))
    rerank_pairs(config)
    with pytest.raises(
        IndexStateError, match="the files of the source have changed since generation 1"
    ) as refused:
        rerank_pairs(make(many(4)))
    assert "reindex" not in str(refused.value)
    with pytest.raises(IndexStateError, match=r"with another model\.query_max_length"):
        rerank_pairs(make(many(4), reranker={"query_max_length": 10}))
    assert rerank_pairs(make(many(4)), fresh=True).counts.documents == 4


def test_scores_are_no_index_to_search_evaluate_or_reindex(make: Make, tmp_path: Path) -> None:
    config = make(many(2))
    rerank_pairs(config)
    vectors = vectors_over(config.index.uri, tmp_path)
    refused = pytest.raises(IndexStateError, match="expected an index of vectors, found scores")
    with refused:
        read_space(config.index.uri)
    with refused:
        modes_of(vectors, open_index(config.index.uri))
    with refused:
        reindex(vectors, permit=Permit(yes=True))


def test_runs_of_one_kind_are_refused_over_the_results_of_the_other(
    make: Make, tmp_path: Path
) -> None:
    scores = make(many(2))
    rerank_pairs(scores)
    with pytest.raises(IndexStateError, match=r"expected vectors of passages, .* found scores"):
        embed_corpus(vectors_over(scores.index.uri, tmp_path))
    vectors = vectors_over(str(tmp_path / "vectors"), tmp_path)
    embed_corpus(vectors)
    with pytest.raises(IndexStateError, match=r"expected scores of pairs, .* found") as refused:
        rerank_pairs(make(many(2), index={"uri": vectors.index.uri}))
    assert "reindex" not in str(refused.value)


def vectors_over(uri: str, folder: Path) -> RunConfig:
    """A run that would embed documents into a place."""
    pq.write_table(pa.table({"id": ["1"], "text": ["a"]}), folder / "documents.parquet")
    raw = {
        "source": {"uri": str(folder / "documents.parquet")},
        "index": {"uri": uri},
        "model": {"name": "builtin:tiny-m3", "device": "cpu"},
    }
    return parse_as(RunConfig, raw, "test")


# The command


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.name=x"], "unknown key 'model'"),
        (["reranker.name=builtin:tiny-m3"], "expected a reranker, found XLMRobertaModel"),
        (["source.columns.query=text"], "query and metadata columns with different names that"),
        (["source.columns.metadata=[query]"], "expected query and metadata columns with different"),
        (["source.format=lines"], "source.format: expected a format with columns"),
        (["reranker.max_length=9999"], "reranker.max_length: expected at most"),
    ],
)
def test_command_that_cannot_start_says_why_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], settings: list[str], message: str
) -> None:
    pq.write_table(pa.Table.from_pylist(many(2)), tmp_path / "pairs.parquet")
    given = [f"source.uri={tmp_path}/pairs.parquet", f"index.uri={tmp_path}/scores"]
    given += [f"reranker.name={MODEL}", "reranker.revision=null", "source.columns.metadata=[]"]
    words = [word for setting in [*given, *settings] for word in ("--set", setting)]
    result = CliRunner().invoke(app, [str(ROOT / "conf/rerank.yaml"), *words])
    assert result.exit_code == 2
    assert message in " ".join(capfd.readouterr().err.split())
    assert not Path(tmp_path / "scores").exists()


def test_configuration_of_the_repository_is_valid() -> None:
    config = parse_as(PairsConfig, read_yaml(ROOT / "conf/rerank.yaml"), "conf/rerank.yaml")
    assert config.reranker.name == "BAAI/bge-reranker-v2-m3"


def test_rerank_configuration_md_is_what_the_code_says() -> None:
    path = ROOT / "docs/rerank-configuration.md"
    assert path.read_text() == CliRunner().invoke(config_app, ["--pairs"]).output, "run make docs"


def test_scores_on_a_cluster_are_those_of_one_process(make: Make, ray_cluster: None) -> None:
    config = make(many(40), ray={"engine": "ray", "actors": 2})
    manifest = rerank_pairs(config)
    assert manifest.counts.documents == 40
    found = {row["text"]: row["score"] for row in rows_of(config)}
    pairs = [(row["query"], row["passage"]) for row in many(40)]
    expected = load_reranker(config.reranker).score(pairs)
    assert list(found) == [passage for _, passage in pairs]
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-5, atol=1e-5)
