"""Evaluating an index: every mode's measures equal those of the same vectors compared by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from typer.testing import CliRunner

from actors.encoder import load_encoder
from actors.errors import ConfigError, EmbedError, GateError
from pipelines.config import RunConfig, load_config
from pipelines.embed_corpus import embed_corpus
from pipelines.evaluate_index import app, evaluate_index
from pipelines.evaluation.dataset import read_judged
from pipelines.evaluation.evaluate import BM25, Evaluated, judged_files
from pipelines.evaluation.results import read_evaluation
from pipelines.evaluation.runs import read_trec_run
from pipelines.index import Index, open_index
from pipelines.index.generations import live_generation
from pipelines.search.searcher import MODES
from pipelines.store import open_store

SMALL = ROOT / "tests/data/xquad-en"
WHOLE = ROOT.parent / "shared/data/xquad/en"


def config_of(data: Path, folder: Path, *more: str) -> RunConfig:
    """conf/beir.yaml, as the documentation says to run it."""
    places = {
        "source.uri": data,
        "index.uri": folder / "index",
        "evaluate.out": folder / "evaluation",
        "search.folder": folder / "mapped",
    }
    overrides = [f"{key}={value}" for key, value in places.items()]
    overrides += ["model.dtype=float32", "ray.engine=in_process", *more]
    return load_config(ROOT / "conf/beir.yaml", overrides)


@pytest.fixture(scope="module")
def evaluated(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[RunConfig, Evaluated, Index]:
    """With the quickstart encoder; the index is not there before."""
    config = config_of(SMALL, tmp_path_factory.mktemp("evaluate"))
    return config, *evaluate_index(config)


def compared_by_hand(config: RunConfig, index: Index) -> dict[str, np.ndarray]:
    """nDCG@10 of every query in each mode, from the stored vectors alone."""
    judged = read_judged(*judged_files(config))
    encoder = load_encoder(config.encoder)
    queries = encoder.encode_queries(list(judged.queries.values())).to_pylist()
    rows = index.to_table().to_pylist()
    sparse = [dict(zip(*row["sparse"].values(), strict=True)) for row in rows]
    dense = np.array([row["dense"] for row in rows], np.float32)
    tokens = [np.array(row["colbert"], np.float32) for row in rows]
    ends = np.cumsum([len(t) for t in tokens])[:-1]
    together = np.concatenate(tokens)
    documents = [row["doc_id"] for row in rows]
    gains: dict[str, list[float]] = {mode: [] for mode in MODES}
    for query_id, query in zip(judged.queries, queries, strict=True):
        products = np.array(query["colbert"], np.float32) @ together.T
        best = np.stack([part.max(axis=1) for part in np.split(products, ends, axis=1)])
        scores = {
            "dense": dense @ np.array(query["dense"], np.float32),
            "sparse": np.array(
                [
                    sum(
                        value * row.get(i, 0.0)
                        for i, value in zip(*query["sparse"].values(), strict=True)
                    )
                    for row in sparse
                ]
            ),
            "colbert": best.mean(axis=1),
        }
        ranks = {name: np.argsort(np.argsort(-s, kind="stable")) + 1 for name, s in scores.items()}
        scores["rrf"] = sum(
            np.where((name != "sparse") | (scores[name] > 0), 1 / (60 + rank), 0)
            for name, rank in ranks.items()
        )
        scores["hybrid"] = sum(scores[name] for name in ("dense", "sparse", "colbert")) / 3
        for mode in MODES:
            order = np.argsort(-scores[mode], kind="stable")[:10]
            kept = [at for at in order if mode != "sparse" or scores[mode][at] > 0]
            gains[mode].append(ndcg([documents[at] for at in kept], judged.qrels[query_id]))
    return {mode: np.array(values) for mode, values in gains.items()}


def ndcg(found: list[str], judged: dict[str, int]) -> float:
    """Järvelin and Kekäläinen 2002, linear gains, as trec_eval's ndcg_cut."""
    discounts = 1 / np.log2(np.arange(2, 12))
    gains = np.array([judged.get(document, 0) for document in found])
    ideal = np.array(sorted(judged.values(), reverse=True)[:10])
    return float((gains * discounts[: len(gains)]).sum() / (ideal * discounts[: len(ideal)]).sum())


def check_against_hand(config: RunConfig, found: Evaluated, index: Index) -> None:
    assert [mode.name for mode in found.evaluation.modes] == [*MODES, BM25]
    for mode, values in compared_by_hand(config, index).items():
        ours = found.evaluation.mode(mode).measures["nDCG@10"].mean
        assert ours == pytest.approx(values.mean(), abs=1e-3), mode
        assert ours > 0.9


def test_evaluation_of_every_mode_equals_brute_force(
    evaluated: tuple[RunConfig, Evaluated, Index],
) -> None:
    check_against_hand(*evaluated)


@pytest.mark.slow
def test_evaluation_of_the_whole_dataset_equals_brute_force(tmp_path: Path) -> None:
    if not WHOLE.is_dir():
        pytest.skip("the whole of XQuAD is not here")
    config = config_of(WHOLE, tmp_path)
    check_against_hand(config, *evaluate_index(config))


def test_evaluation_says_what_it_was_of(evaluated: tuple[RunConfig, Evaluated, Index]) -> None:
    config, found, index = evaluated
    evaluation = found.evaluation
    assert evaluation.index.uri == config.index.uri
    assert evaluation.index.generation == index.info.generation == 1
    assert evaluation.index.documents == evaluation.index.passages == 80
    assert evaluation.dataset.judged_queries == len(evaluation.query_ids) == 426
    assert evaluation.dataset.unknown_documents == 0
    assert evaluation.mode("hybrid").settings == {"weights": [1.0, 1.0, 1.0]}
    assert evaluation.mode("rrf").settings == {"k": 60, "depth": 1000}
    assert {"encode", "search", BM25} <= evaluation.seconds.keys()


@pytest.fixture
def run_command(
    evaluated: tuple[RunConfig, Evaluated, Index], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Evaluates the same index again by the command, in dense mode unless told otherwise."""
    folder = Path(evaluated[0].index.uri).parent

    def run(*arguments: str) -> tuple[int, str, str]:
        places = {
            "source.uri": SMALL,
            "index.uri": folder / "index",
            "search.folder": folder / "mapped",
            "evaluate.out": tmp_path / "out",
            "evaluate.modes": "[dense]",
            "model.dtype": "float32",
            "ray.engine": "in_process",
        }
        sets = [word for key, value in places.items() for word in ("--set", f"{key}={value}")]
        command = [str(ROOT / "conf/beir.yaml"), *sets, *arguments]
        result = CliRunner().invoke(app, command, env={"COLUMNS": "120"})
        return result.exit_code, result.output, capfd.readouterr().err

    return run


def test_command_prints_a_table_and_writes_json_page_and_runs(
    evaluated: tuple[RunConfig, Evaluated, Index], run_command: Any, tmp_path: Path
) -> None:
    code, said, error = run_command()
    assert (code, error) == (0, "")
    dense = evaluated[1].evaluation.mode("dense").measures["nDCG@10"].mean
    line = next(line for line in said.splitlines() if line.split()[:1] == ["dense"])
    assert line.split()[1] == f"{dense:.3f}"
    again = read_evaluation(str(tmp_path / "out/eval.json"))
    assert again.mode("dense").measures == evaluated[1].evaluation.mode("dense").measures
    page = (tmp_path / "out/eval.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    run = read_trec_run(str(tmp_path / "out/dense.run"))
    assert {query: list(found) for query, found in run.items()} == {
        query: list(found) for query, found in evaluated[1].rankings["dense"].items()
    }
    assert (tmp_path / "out/bm25.run").exists()


def test_command_against_another_evaluation_and_a_run_compares_them(
    run_command: Any, tmp_path: Path
) -> None:
    assert run_command()[0] == 0
    before = shutil.copytree(tmp_path / "out", tmp_path / "before")
    code, said, error = run_command(
        *("--against", str(before / "eval.json"), "--against", str(before / "bm25.run")),
        *("--against-generation", "1", "--set", "evaluate.bm25=null"),
    )
    assert (code, error) == (0, "")
    assert said.count("won/lost/tied") == 2
    # The same index, by four measures: dense twice, bm25 against the file.
    assert said.count("0/0/426") == 12
    modes = json.loads((tmp_path / "out/eval.json").read_text())["modes"]
    assert [mode["name"] for mode in modes] == ["dense", "bm25"]
    again = read_evaluation(str(before / "eval.json")).mode("bm25").measures
    assert modes[1]["measures"]["nDCG@10"]["mean"] == pytest.approx(again["nDCG@10"].mean)


def test_command_with_a_reranker_has_a_mode_more_over_the_same_documents(
    run_command: Any, tmp_path: Path
) -> None:
    """Random weights: what counts is that its order is the ranking, and nothing is lost."""
    reranker = ROOT / "tests/data/oracle/models/bge-reranker-v2-m3"
    more = ("--rerank", str(reranker), "--rerank-top", "3", "--set", "evaluate.bm25=null")
    code, said, error = run_command(*more)
    assert (code, error) == (0, "")
    assert next(line for line in said.splitlines() if line.split()[:1] == ["rerank"])
    files = (str(tmp_path / f"out/{name}.run") for name in ("dense", "rerank"))
    dense, found = map(read_trec_run, files)
    assert found.keys() == dense.keys()
    for query, ranking in found.items():
        first, before = list(ranking), list(dense[query])
        assert sorted(first[:3]) == sorted(before[:3])
        assert first[3:] == before[3:]
    assert any(list(found[query]) != list(dense[query]) for query in found)
    settings = read_evaluation(str(tmp_path / "out/eval.json")).mode("rerank").settings
    assert settings == {"model": str(reranker), "top": 3}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rerank", str(ROOT / "tests/data/oracle/models/bge-m3")), "expected a reranker"),
        (
            (
                *("--rerank", str(ROOT / "tests/data/oracle/models/bge-reranker-v2-m3")),
                *("--set", "index.store_text=false"),
            ),
            "expected the passages' texts",
        ),
    ],
)
def test_command_whose_reranker_cannot_rerank_says_so_before_it_embeds(
    arguments: tuple[str, ...],
    said: str,
    run_command: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("pipelines.embed_corpus.embed_corpus")
    code, _, error = run_command(*arguments, "--set", f"index.uri={tmp_path}/new")
    assert code == 2
    assert said in error


def test_command_says_which_relevant_documents_no_mode_can_find(
    run_command: Any, tmp_path: Path
) -> None:
    qrels = tmp_path / "qrels.tsv"
    judged = (SMALL / "qrels/test.tsv").read_text()
    query = judged.splitlines()[1].split("\t")[0]
    qrels.write_text(f"{judged}{query}\tnowhere\t1\n")
    code, said, _ = run_command("--set", f"evaluate.qrels={qrels}", "--set", "evaluate.bm25=null")
    assert code == 0
    assert "1 of " in said
    assert "relevant documents are not in the index: no mode can find them." in said
    assert "not in the index" not in run_command("--set", "evaluate.bm25=null")[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--against", "other.csv"], "--against: expected an eval.json or a run file"),
        (["--against", "{other}.run"], "--against: expected judged queries in"),
        (["--set", "evaluate.depth=20"], "evaluate.depth: expected greater than or equal to 100"),
        (["--set", "evaluate.qrels=none.tsv"], "none.tsv"),
        (["--set", "source.format=jsonl"], "evaluate.queries: expected a file, found none"),
        (["--generation", "7"], "expected generation 7"),
        (["--set", "outputs=[dense]", "--set", "model.pooling=cls"], "expected the space"),
    ],
)
def test_command_that_cannot_evaluate_says_so_in_a_line(
    run_command: Any, arguments: list[str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "other.run").write_text("other Q0 d1 1 0.5 tag\n")
    arguments = [word.format(other=tmp_path / "other") for word in arguments]
    code, output, error = run_command(*arguments)
    assert (code, output) == (2, "")
    assert said in error
    assert "Traceback" not in error


def test_gate_that_asks_for_a_measure_keeps_what_is_worse_from_going_live(tmp_path: Path) -> None:
    def config(least: float) -> RunConfig:
        floor = f"gate.quality=[{{mode: dense, measure: nDCG@10, least: {least}}}]"
        tiny = ("model.name=builtin:tiny-m3", "model.heads=null", "chunk.title_prefix=false")
        return config_of(SMALL, tmp_path, *tiny, "outputs=[dense]", "gate.vectors=false", floor)

    with pytest.raises(GateError, match=r"nDCG@10 of dense is 0\.\d+ over 426 .* \(0\.99\)"):
        embed_corpus(config(0.99))
    store = open_store(str(tmp_path / "index"))
    assert live_generation(store) is None
    assert open_index(str(tmp_path / "index"), generation=1).info.generation == 1
    assert embed_corpus(config(0.001)).generation == 1
    assert live_generation(store) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("evaluate.qrels=none.tsv", "none.tsv"),
        ("gate.quality=[{mode: sparse, least: 0.5}]", "expected one of dense, got sparse"),
        ("gate.canaries=none.jsonl", "gate.canaries: cannot read"),
    ],
)
def test_gate_that_could_never_be_passed_is_refused_before_anything_is_embedded(
    tmp_path: Path, change: str, said: str
) -> None:
    floor = "gate.quality=[{least: 0.5}]"
    tiny = ("model.name=builtin:tiny-m3", "model.heads=null", "outputs=[dense]", floor, change)
    with pytest.raises(EmbedError, match=said):
        embed_corpus(config_of(SMALL, tmp_path, *tiny))
    assert not (tmp_path / "index/runs").exists()


def test_gate_that_asks_for_a_measure_without_judged_queries_is_refused(tmp_path: Path) -> None:
    floor = "gate.quality=[{least: 0.5}]"
    with pytest.raises(ConfigError, match=r"gate.quality: expected evaluate\.queries"):
        config_of(SMALL, tmp_path, floor, "source.format=jsonl")
