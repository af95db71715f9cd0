"""Search over an index: equal to comparing every live passage by hand, however it is sharded."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_index import EXACT, History
from test_search_shard import naive_score
from typer.testing import CliRunner

from actors.config import OUTPUTS, ModelConfig, RerankerConfig
from actors.encoder import Encoder, load_encoder
from actors.errors import ConfigError, IndexStateError, StorageError
from actors.reranker import load_reranker
from actors.tokens.tokenizer import encoder_input
from pipelines.config.sections import RayConfig, SearchConfig
from pipelines.index import Index, open_index
from pipelines.search import shard_files
from pipelines.search import shards as memory
from pipelines.search.answers import Hit, excerpt, find, printable
from pipelines.search.opening import open_searcher
from pipelines.search.searcher import MODES, Searcher
from pipelines.search.shard_files import ROWS, ShardFiles, in_blocks, shards_of
from pipelines.search.shard_host import ShardHost
from pipelines.search.shards import request
from pipelines.search_index import _plain as plain
from pipelines.search_index import app, search_index

RERANKER = ROOT / "tests/data/oracle/models/bge-reranker-v2-m3"
WEIGHTS = (1.0, 0.5, 2.0)
WORDS = ["river", "bridge", "castle", "music", "winter", "stone", "garden", "engine", "copper"]
QUERIES = ["the old stone bridge", "music in winter", "copper engine voyage to a planet"]


def text_of(number: int, words: int) -> str:
    rng = np.random.default_rng(number)
    return " ".join(rng.choice(WORDS, words))


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    """Three generations: documents of several passages, edited and deleted ones, several parts."""
    history = History(
        tmp_path_factory.mktemp("search"),
        outputs=list(OUTPUTS),
        chunk={"max_tokens": 24},
        gate={"max_deleted": 1.0},
    )
    history.write("a", {f"a{i}": text_of(i, 6 + 9 * i) for i in range(6)})
    history.write("b", {f"b{i}": text_of(50 + i, 30) for i in range(5)})
    history.run()
    history.write("a", {f"a{i}": text_of(i + 7 * (i == 2), 6 + 9 * i) for i in (0, 2, 3, 5)})
    history.run()
    history.remove("b")
    history.write("c", {f"c{i}": text_of(90 + i, 12) for i in range(4)})
    history.run()
    return history


@cache
def encoder() -> Encoder:
    return load_encoder(ModelConfig(outputs=OUTPUTS, **EXACT))


@pytest.fixture(scope="module")
def queries() -> pa.Table:
    return encoder().encode_queries(QUERIES)


class _Here:
    def __init__(self, host: ShardHost) -> None:
        self._host = host

    def start(self, method: str, *args: Any, **named: Any) -> Any:
        result = getattr(self._host, method)(*args, **named)
        return lambda: result


def searcher_of(index: Index, shards: int, folder: Path, **config: Any) -> Searcher:
    search = SearchConfig(weights=WEIGHTS, folder=str(folder), **config)
    number = len(shards_of(index.parts, shards))
    hosts = [ShardHost(request(index, OUTPUTS, search, i, shards)) for i in range(number)]
    return Searcher([_Here(host) for host in hosts], OUTPUTS, search)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mapped")


def by_hand(index: Index, queries: pa.Table, mode: str, unit: str) -> list[list[tuple[str, float]]]:
    """(passage or document id, score) of each query, best first, by comparing everything."""
    rows = index.to_table().to_pylist()
    return [ranking(rows, query, mode, unit) for query in queries.to_pylist()]


def fused(rankings: list[list[str]]) -> dict[str, float]:
    """Reciprocal rank fusion of names."""
    sums: dict[str, float] = {}
    for names in rankings:
        for rank, name in enumerate(names, 1):
            sums[name] = sums.get(name, 0) + 1 / (60 + rank)
    return sums


def ranking(
    rows: list[dict[str, Any]], query: dict[str, Any], by: str, unit: str
) -> list[tuple[str, float]]:
    best: dict[str, float] = {}
    for row in rows:
        name = row["passage_id"] if unit == "passage" else row["doc_id"]
        best[name] = max(best.get(name, -np.inf), naive_score(query, row, by))
    pairs = [pair for pair in best.items() if by != "sparse" or pair[1] > 0]
    return sorted(pairs, key=lambda pair: -pair[1])


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shards=st.integers(1, 6),
    generation=st.sampled_from([1, 2, 3]),
    unit=st.sampled_from(["passage", "document"]),
    top=st.integers(1, 60),
)
def test_search_of_any_shards_and_generation_equals_comparing_everything(
    history: History,
    queries: pa.Table,
    folder: Path,
    shards: int,
    generation: int,
    unit: Any,
    top: int,
) -> None:
    index = history.index_of(generation)
    searcher = searcher_of(index, shards, folder, rrf_depth=5)
    live = index.to_table(["passage_id"])["passage_id"].to_pylist()
    assert searcher.rows == len(live)
    found = searcher.search(queries, MODES, top, unit=unit)
    column = "passage_id" if unit == "passage" else "doc_id"

    def names_of(rows: np.ndarray) -> list[str]:
        return searcher.take(rows[rows >= 0], [column])[column].to_pylist()

    for mode in (*OUTPUTS, "hybrid"):
        expected = by_hand(index, queries, mode, unit)
        for scores, rows, pairs in zip(*found[mode], expected, strict=True):
            kept = rows >= 0
            assert kept.sum() == min(top, len(pairs))
            want = dict(pairs)
            np.testing.assert_allclose(scores[kept], [score for _, score in pairs[:top]], atol=2e-5)
            names = names_of(rows)
            assert len(set(names)) == len(names)
            np.testing.assert_allclose([want[name] for name in names], scores[kept], atol=2e-5)
    # Ranks of scores that differ by rounding alone are the search's own.
    deep = searcher.search(queries, OUTPUTS, 5, unit=unit)
    for query, (scores, rows) in enumerate(zip(*found["rrf"], strict=True)):
        sums = fused([names_of(deep[output][1][query]) for output in OUTPUTS])
        kept = rows >= 0
        np.testing.assert_allclose(scores[kept], sorted(sums.values())[::-1][:top], rtol=1e-5)
        np.testing.assert_allclose([sums[name] for name in names_of(rows)], scores[kept], rtol=1e-5)


def test_search_among_candidates_scores_only_what_dense_and_sparse_find(
    history: History, queries: pa.Table, folder: Path
) -> None:
    index = history.index
    everything = searcher_of(index, 2, folder)
    few = searcher_of(index, 2, folder, candidates=3)
    cheap = everything.search(queries, ["dense", "sparse"], 3)
    exact = everything.search(queries, ["colbert", "hybrid"], everything.rows)
    for unit in ("passage", "document"):
        found = few.search(queries, MODES, 100, unit=unit)
        for mode in ("colbert", "hybrid", "rrf"):
            for query in range(len(QUERIES)):
                rows = found[mode][1][query]
                allowed = set(cheap["dense"][1][query]) | set(cheap["sparse"][1][query])
                if unit == "passage":
                    assert set(rows[rows >= 0]) == allowed - {-1}
                if mode != "rrf" and unit == "passage":
                    scores = dict(zip(exact[mode][1][query], exact[mode][0][query], strict=True))
                    kept = rows >= 0
                    np.testing.assert_allclose(
                        [scores[row] for row in rows[kept]], found[mode][0][query][kept], atol=1e-5
                    )
    # As many candidates as there are passages: nothing is left out.
    whole = searcher_of(index, 3, folder, candidates=1000).search(queries, MODES, 9)
    for mode, (scores, _) in everything.search(queries, MODES, 9).items():
        np.testing.assert_allclose(whole[mode][0], scores, atol=1e-5)


def test_find_by_document_shows_the_passage_that_answers_best(
    history: History, queries: pa.Table, folder: Path
) -> None:
    searcher = searcher_of(history.index, 2, folder)
    rows = {row["passage_id"]: row for row in history.index.to_table().to_pylist()}
    for mode in ("colbert", "hybrid"):
        for query, hits in zip(
            queries.to_pylist(), find(searcher, queries, mode, 4, unit="document"), strict=True
        ):
            assert [hit.rank for hit in hits] == [1, 2, 3, 4]
            for hit in hits:
                shown = rows[hit.passage["passage_id"]]
                own = [row for row in rows.values() if row["doc_id"] == shown["doc_id"]]
                best = max(naive_score(query, row, mode) for row in own)
                assert naive_score(query, shown, mode) == pytest.approx(best, abs=1e-5)
                assert hit.score == pytest.approx(best, abs=1e-5)
                for output in OUTPUTS:
                    assert hit.scores[output] == pytest.approx(
                        naive_score(query, shown, output), abs=1e-5
                    )


@pytest.mark.parametrize(
    "sections",
    [
        {"index": {"colbert_storage": "bytes"}},
        {"model": EXACT | {"vector_dtype": "float32"}},
        {"index": {"store_text": False, "colbert_storage": "bytes"}, "outputs": ["colbert"]},
    ],
)
def test_search_of_vectors_however_they_are_stored_equals_comparing_everything(
    tmp_path: Path, sections: dict[str, Any]
) -> None:
    history = History(tmp_path, **({"outputs": list(OUTPUTS)} | sections))
    history.write("a", {f"a{i}": text_of(i, 30) for i in range(8)})
    history.run()
    outputs = history.config.outputs
    queries = encoder().encode_queries(QUERIES).select(outputs)
    search = SearchConfig(weights=WEIGHTS, folder=str(tmp_path / "mapped"))
    with open_searcher(history.index, outputs, search, RayConfig()) as searcher:
        modes = [*outputs, *(["hybrid"] if len(outputs) > 1 else [])]
        for mode, (scores, _) in searcher.search(queries, modes, 8).items():
            expected = by_hand(history.index, queries, mode, "passage")
            for row, pairs in zip(scores, expected, strict=True):
                np.testing.assert_allclose(row[: len(pairs)], [s for _, s in pairs], atol=2e-5)
    config = history.config.model_copy(update={"search": search})
    assert search_index(history.index, config, QUERIES)[1][0][0].rank == 1


def test_search_on_ray_equals_search_here(
    history: History, queries: pa.Table, folder: Path, ray_cluster: None
) -> None:
    search = SearchConfig(weights=WEIGHTS, folder=str(folder), shards=3, cpus_per_shard=1)
    with open_searcher(history.index, OUTPUTS, search, RayConfig()) as searcher:
        there = searcher.search(queries, MODES, 5)
        table = searcher.take(np.array([7, 0, 3]), vectors=True)
    here = searcher_of(history.index, 3, folder)
    for mode, (scores, rows) in here.search(queries, MODES, 5).items():
        np.testing.assert_array_equal(there[mode][1], rows)
        np.testing.assert_allclose(there[mode][0], scores, atol=1e-6)
    assert table.equals(here.take(np.array([7, 0, 3]), vectors=True))


def test_shard_files_are_written_once_and_found_again(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = history.index
    files = ShardFiles(index, index.parts, tmp_path)
    first = files.open(["dense"])
    monkeypatch.setattr(Index, "live_rows", None)  # nothing is read from here on
    again = ShardFiles(index, index.parts, tmp_path).open(["dense"])
    assert again["dense"].equals(first["dense"])
    monkeypatch.undo()
    both = ShardFiles(index, index.parts, tmp_path).open([ROWS, "dense"])
    assert both[ROWS].num_rows == first["dense"].num_rows
    assert "dense" not in both[ROWS].column_names
    chunks = [len(chunk) for chunk in both[ROWS]["doc_id"].chunks]
    assert chunks == [len(chunk) for chunk in both["dense"]["dense"].chunks]


def test_shard_files_of_generations_nobody_searches_go(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        index = history.index_of(number)
        ShardFiles(index, index.parts, tmp_path).open(["dense"])
    assert len(list(tmp_path.glob("*/00000*"))) == 2
    monkeypatch.setattr(shard_files, "_FORGET_SECONDS", -1)
    index = history.index_of(3)
    ShardFiles(index, index.parts, tmp_path).open(["dense"])
    assert [path.name for path in tmp_path.glob("*/00000*")] == ["000003"]


@given(
    documents=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), max_size=12),
    batch=st.integers(1, 7),
    rows=st.integers(1, 6),
    tokens=st.integers(4, 30),
)
@settings(deadline=None)
def test_blocks_hold_whole_documents_in_order_within_their_limits(
    documents: list[list[int]], batch: int, rows: int, tokens: int
) -> None:
    table = pa.table(
        {
            "doc_id": pa.array([f"d{i}" for i, own in enumerate(documents) for _ in own], "string"),
            "n_tokens": pa.array([n for own in documents for n in own], pa.int32()),
        }
    )
    batches = (table.slice(at, batch) for at in range(0, table.num_rows, batch))
    blocks = list(in_blocks(batches, rows, tokens))
    joined = pa.Table.from_batches(blocks, table.schema)
    assert joined.equals(table) or joined.to_pydict() == table.to_pydict()
    seen: set[str] = set()
    for block in blocks:
        own = set(block["doc_id"].to_pylist())
        assert own
        assert not own & seen
        seen |= own
        total = sum(block["n_tokens"].to_pylist())
        assert len(own) == 1 or (block.num_rows <= rows and total <= tokens)


@given(rows=st.lists(st.integers(0, 9), min_size=0, max_size=12), shards=st.integers(1, 5))
def test_shards_are_runs_of_all_live_parts(rows: list[int], shards: int) -> None:
    from pipelines.index.parts import Part

    parts = [Part(f"p{i}", n, ()) for i, n in enumerate(rows)]
    found = shards_of(parts, shards)
    assert [part for shard in found for part in shard] == [part for part in parts if part.rows]
    assert 1 <= len(found) <= shards
    assert all(found) or found == [[]]


def test_search_that_does_not_fit_is_refused_with_both_numbers(history: History) -> None:
    config = history.config.model_copy(update={"search": SearchConfig(max_memory_bytes=1_000_000)})
    with pytest.raises(ConfigError, match=r"expected 537 MB .* found 1 MB") as error:
        search_index(history.index, config, ["bridge"])
    assert "search.candidates" in error.value.remedy


def test_memory_needed_is_that_of_the_vectors_searched(history: History) -> None:
    index = history.index
    need = memory.needed(index, ["dense", "colbert"])
    rows = index.to_table()
    assert need.by_output["dense"] == rows["dense"].nbytes
    assert need.by_output["colbert"] == pytest.approx(rows["colbert"].nbytes, rel=0.3)
    assert memory.free_bytes() > 1 << 20


@pytest.mark.parametrize(
    ("mode", "change", "said"),
    [
        ("sparse", {}, "expected one of dense, got sparse"),
        ("hybrid", {"weights": (0.0, 1.0, 1.0)}, "a weight other than 0 for dense"),
    ],
)
def test_search_for_what_the_index_has_not_is_refused(
    tmp_path: Path, mode: Any, change: dict[str, Any], said: str
) -> None:
    history = History(tmp_path, outputs=["dense"])
    history.write("a", {"a1": "one text"})
    history.run()
    search = SearchConfig(folder=str(tmp_path / "mapped"), **change)
    config = history.config.model_copy(update={"search": search})
    with pytest.raises(IndexStateError, match=said):
        search_index(history.index, config, ["text"], mode=mode)
    if not change:
        assert search_index(history.index, config, ["text"])[0] == "dense"


def test_search_of_an_index_without_live_rows_finds_nothing(tmp_path: Path) -> None:
    history = History(tmp_path, outputs=list(OUTPUTS))
    history.write("a", {"a1": " "})
    history.run()
    search = SearchConfig(folder=str(tmp_path / "mapped"))
    config = history.config.model_copy(update={"search": search})
    for mode in MODES:
        assert search_index(history.index, config, ["text"], mode=mode)[1] == [[]]


@pytest.fixture
def command(history: History, folder: Path) -> list[str]:
    return [history.config.index.uri, "--set", f"search.folder={folder}"]


def test_command_prints_ranked_passages_with_their_scores_and_text(
    history: History, command: list[str]
) -> None:
    result = CliRunner().invoke(app, [*command, *QUERIES[:2], "--top", "2"], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    answers = search_index(
        open_index(history.config.index.uri), history.config, QUERIES[:2], top=2
    )[1]
    for query, hits in zip(QUERIES, answers, strict=False):
        assert query in result.output
        for hit in hits:
            line = next(li for li in result.output.splitlines() if hit.passage["passage_id"] in li)
            assert line.split()[:2] == [str(hit.rank), f"{hit.score:.4f}"]
            for output in OUTPUTS:
                assert f"{output} {hit.scores[output]:.4f}" in line
            assert hit.passage["text"][:30] in result.output


def test_command_in_json_gives_an_object_a_query(command: list[str]) -> None:
    arguments = [*command, *QUERIES, "--format", "json", "--mode", "sparse", "--by", "document"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.output.splitlines()]
    assert [line["query"] for line in lines] == QUERIES
    assert {line["mode"] for line in lines} == {"sparse"}
    hits = lines[0]["hits"]
    assert len({hit["doc_id"] for hit in hits}) == len(hits) > 1
    assert {"rank", "score", "scores", "passage_id", "text", "url"} <= hits[0].keys()


def test_hit_in_json_is_not_hidden_by_a_column_of_its_name(history: History) -> None:
    passage = {"rank": "9th", "score": None, "url": "u"}
    hit = Hit(rank=1, score=0.5, scores={"dense": 0.5}, row=3, passage=passage)
    [found] = plain("q", "dense", history.index, [hit])["hits"]  # type: ignore[misc]
    assert found == {"rank": 1, "score": 0.5, "scores": {"dense": 0.5}, "url": "u"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["  "], "error: QUERY: expected words"),
        (["\udcff bridge"], "error: QUERY: expected Unicode"),
        (["x", "--set", "search.weights=[0,0,0]"], "expected a weight other than 0"),
        (["x", "--generation", "9"], "generation 9"),
        (["x", "--set", "model.pooling=mean"], "expected the space of its vectors"),
    ],
)
def test_command_that_cannot_search_says_so_in_a_line(
    command: list[str], arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    result = CliRunner().invoke(app, [*command, *arguments])
    assert (result.exit_code, result.output) == (2, "")
    error = capfd.readouterr().err
    assert said in error
    assert "Traceback" not in error


def reranker_config() -> RerankerConfig:
    return RerankerConfig(name=str(RERANKER), max_length=96, dtype="float32", device="cpu")


@pytest.mark.parametrize("prefix", [False, True])
def test_search_with_a_reranker_orders_what_the_first_stage_found(
    history: History, folder: Path, prefix: bool
) -> None:
    chunk = history.config.chunk.model_copy(update={"title_prefix": prefix})
    search = SearchConfig(folder=str(folder))
    config = history.config.model_copy(update={"search": search, "chunk": chunk})
    first = search_index(history.index, config, QUERIES, top=6)[1]
    second = search_index(
        history.index, config, QUERIES, top=4, reranker=reranker_config(), rerank_top=6
    )[1]
    reranker = load_reranker(reranker_config())
    for query, before, hits in zip(QUERIES, first, second, strict=True):
        texts = [
            encoder_input(hit.passage["title"], hit.passage["text"])
            if prefix
            else hit.passage["text"]
            for hit in before
        ]
        scores = reranker.score([(query, text) for text in texts])
        order = np.argsort(-scores, kind="stable")[:4]
        assert [hit.rank for hit in hits] == [1, 2, 3, 4]
        expected = [before[place].passage["passage_id"] for place in order]
        assert [hit.passage["passage_id"] for hit in hits] == expected
        np.testing.assert_allclose([hit.score for hit in hits], scores[order], atol=1e-5)
        assert hits[0].scores == before[order[0]].scores | {"rerank": hits[0].score}


def test_search_with_a_reranker_reads_so_many_and_the_others_follow(
    history: History, folder: Path
) -> None:
    config = history.config.model_copy(update={"search": SearchConfig(folder=str(folder))})
    first = search_index(history.index, config, QUERIES, top=5)[1]
    second = search_index(
        history.index, config, QUERIES, top=5, reranker=reranker_config(), rerank_top=2
    )[1]
    for before, hits in zip(first, second, strict=True):
        assert ["rerank" in hit.scores for hit in hits] == [True, True, False, False, False]
        assert sorted(hit.row for hit in hits[:2]) == sorted(hit.row for hit in before[:2])
        assert hits[2:] == before[2:]


def test_search_with_a_reranker_needs_the_texts(tmp_path: Path) -> None:
    history = History(tmp_path, outputs=["dense"], index={"store_text": False})
    history.write("a", {"a1": "one text"})
    history.run()
    search = SearchConfig(folder=str(tmp_path / "mapped"))
    config = history.config.model_copy(update={"search": search})
    with pytest.raises(IndexStateError, match="expected the passages' texts in the index"):
        search_index(history.index, config, ["text"], reranker=reranker_config())


def test_command_with_an_embedder_as_reranker_says_so(
    command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    for name, said in (
        (str(RERANKER.parent / "bge-m3"), "expected a reranker"),
        ("BAAI/bge-m3", "expected a reranker"),
        ("", "Point reranker.name at a folder"),
    ):
        result = CliRunner().invoke(app, [*command, "x", "--rerank", name])
        assert result.exit_code == 2
        assert said in capfd.readouterr().err


def test_search_by_colbert_alone_among_candidates_finds_what_all_outputs_would(
    history: History, folder: Path
) -> None:
    search = SearchConfig(folder=str(folder), candidates=3)
    config = history.config.model_copy(update={"search": search})
    _, answers = search_index(history.index, config, QUERIES, mode="colbert")
    assert all(3 <= len(hits) <= 6 for hits in answers)


def test_search_for_more_than_there_is_finds_all_of_it(
    history: History, queries: pa.Table, folder: Path
) -> None:
    searcher = searcher_of(history.index, 2, folder)
    _, rows = searcher.search(queries, ["hybrid"], 1 << 40)["hybrid"]
    assert sorted(rows[0].tolist()) == list(range(searcher.rows))


@pytest.mark.parametrize("left", [0, 700])
def test_mapped_file_that_was_cut_short_is_written_again(
    history: History, tmp_path: Path, left: int
) -> None:
    index = history.index
    whole = ShardFiles(index, index.parts, tmp_path).open(["dense"])["dense"].to_pylist()
    [path] = tmp_path.rglob("dense.arrow")
    path.write_bytes(path.read_bytes()[:left])
    assert ShardFiles(index, index.parts, tmp_path).open(["dense"])["dense"].to_pylist() == whole


def test_folder_that_is_none_is_named_as_the_setting_it_is(
    history: History, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"search\.folder: expected a writable folder") as error:
        ShardFiles(history.index, history.index.parts, tmp_path / "file").open(["dense"])
    assert "search.folder=" in error.value.remedy


def test_part_that_is_gone_is_named(tmp_path: Path) -> None:
    history = History(tmp_path, outputs=["dense"])
    history.write("a", {"a1": "one text"})
    history.run()
    next((tmp_path / "index/data").rglob("*.parquet")).unlink()
    index = history.index
    with pytest.raises(StorageError, match=r"\.parquet: expected a part of the index") as error:
        ShardFiles(index, index.parts, tmp_path / "mapped").open(["dense"])
    assert "verify_index" in error.value.remedy


def test_printed_text_has_nothing_that_a_terminal_obeys() -> None:
    assert printable("a\x1b[31m b\n\tc\x9b") == "a [31m b c"


def test_excerpt_is_the_part_that_has_the_querys_words() -> None:
    text = "nothing here. " * 40 + "The stone bridge was built in winter. " + "more words. " * 40
    found = excerpt(text, "stone bridge winter", 80)
    assert "stone bridge was built in winter" in found
    assert found.startswith("…")
    assert found.endswith("…")
    assert len(found) <= 82
    assert excerpt("short", "x", 80) == "short"
    assert len(excerpt("字" * 500, "字", 80)) <= 82
