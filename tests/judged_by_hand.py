"""A small evaluation whose numbers can be counted, for the tests of its record and its page."""

from __future__ import annotations

import json
from pathlib import Path

from generations_by_hand import History

from pipelines.evaluation.dataset import JudgedQueries
from pipelines.evaluation.results import DatasetFacts, Evaluation, IndexFacts, evaluate_modes
from pipelines.store import open_store

QRELS = {f"q{i}": {f"d{i}": 1} for i in range(8)} | {"ü": {"d0": 2, "d9": 1}}
GOOD = {query: dict.fromkeys(judged, 1.0) for query, judged in QRELS.items()}
POOR = {query: {"x": 2.0, **ranking} for query, ranking in GOOD.items() if query != "q7"}


def evaluation(rankings=None, qrels=QRELS, **more):
    judged = JudgedQueries(dict.fromkeys(qrels, "?"), qrels)
    rankings = rankings or {"dense": POOR, "sparse": GOOD, "colbert": POOR}
    return Evaluation(
        started="2026-01-01T00:00:00Z",
        index=IndexFacts(
            uri="out/[x]", generation=2, model="m", space_fingerprint="f", documents=9, passages=12
        ),
        dataset=DatasetFacts.of(judged, "queries.jsonl", "test.tsv", 1),
        baseline="dense",
        query_ids=sorted(qrels),
        modes=evaluate_modes(qrels, rankings, **more),
    )


def evaluation_of_files(folder: Path, rankings=None) -> Evaluation:
    """One whose dataset and index are there: document d0 has one passage, d1 two, and so on."""
    history = History(open_store(str(folder / "index")))
    history.add({f"d{i}": ("t", *("p" * (i + 1))) for i in range(8)})
    queries, qrels = folder / "queries.jsonl", folder / "test.tsv"
    lines = [json.dumps({"_id": query, "text": "?"}) for query in QRELS]
    queries.write_text("\n".join(lines), encoding="utf-8")
    rows = [f"{q}\t{d}\t{rel}\n" for q, judged in QRELS.items() for d, rel in judged.items()]
    qrels.write_text("".join(rows), encoding="utf-8")
    found = evaluation(rankings)
    dataset = {"queries": str(queries), "qrels": str(qrels)}
    index = {"uri": history.store.uri, "generation": 1}
    return found.model_copy(
        update={
            "dataset": found.dataset.model_copy(update=dataset),
            "index": found.index.model_copy(update=index),
        }
    )
