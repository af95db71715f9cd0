"""A small evaluation whose numbers can be counted, for the tests of its record and its page."""

from __future__ import annotations

from pipelines.evaluation.dataset import JudgedQueries
from pipelines.evaluation.results import DatasetFacts, Evaluation, IndexFacts, evaluate_modes

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
