"""Measures of rankings, query by query, and how sure their means are.

The measures are BEIR's (Thakur et al., NeurIPS 2021), computed by ir-measures (MacAvaney et al.,
ECIR 2022), whose nDCG, recall and AP are trec_eval's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.evaluation.dataset import Qrels, Rankings
from pipelines.evaluation.extras import extra

MEASURES = ("nDCG@10", "R@100", "RR@10", "AP")
"""In ir-measures' notation; the first is the one that BEIR compares by."""

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 0
_BLOCK = 1 << 20  # values at once


@dataclass(frozen=True)
class PerQuery:
    """What each query got."""

    query_ids: tuple[str, ...]
    """Sorted."""
    values: Mapping[str, np.ndarray]
    """Measure -> float64[queries], aligned to `query_ids`."""


@dataclass(frozen=True)
class Mean:
    """A mean over queries, and the interval that it would be in for other queries like these."""

    mean: float
    low: float
    high: float


def measure(qrels: Qrels, rankings: Rankings, *, ignore_identical_ids: bool = False) -> PerQuery:
    """Every measure for every judged query; one without results counts 0, others are left out.

    The order of a ranking decides, not its scores. Relevance below 0 counts as 0. AP is of the
    ranking as deep as it is: of a search's first 1,000 it is what is usually published.
    `ignore_identical_ids`: a document with its query's id is no result, as BEIR has it for ArguAna
    and Quora, whose queries are documents of the corpus.

    Raises:
        ConfigError: ir-measures is not installed.
    """
    ir_measures = extra("ir_measures")
    wanted = {ir_measures.parse_measure(name): name for name in MEASURES}
    query_ids = tuple(sorted(qrels))
    row = {query: i for i, query in enumerate(query_ids)}
    values = {name: np.zeros(len(query_ids)) for name in MEASURES}
    judged = {
        query: {document: max(relevance, 0) for document, relevance in documents.items()}
        for query, documents in qrels.items()
    }
    if ignore_identical_ids:
        rankings = without_identical_ids(rankings)
    run = {query: _by_rank(rankings[query]) for query in query_ids if rankings.get(query)}
    for one in _calculated(ir_measures, list(wanted), judged, run):
        values[wanted[one.measure]][row[one.query_id]] = one.value
    return PerQuery(query_ids, values)


def without_identical_ids(rankings: Rankings) -> Rankings:
    """The same, without documents that have their query's id."""
    return {
        query: {document: score for document, score in ranking.items() if document != query}
        for query, ranking in rankings.items()
    }


def first_relevant(qrels: Qrels, rankings: Rankings) -> dict[str, tuple[int, str] | None]:
    """Query -> rank, from 1, and id of its first relevant document; None where none was found."""
    first: dict[str, tuple[int, str] | None] = {}
    for query, judged in qrels.items():
        found = enumerate(rankings.get(query, ()), start=1)
        first[query] = next((at for at in found if judged.get(at[1], 0) > 0), None)
    return first


def mean_of(per_query: PerQuery, name: str, *, resamples: int = RESAMPLES) -> Mean:
    """A measure's mean with its 95 % bootstrap percentile interval.

    Queries are drawn with replacement (Sakai, "Evaluating evaluation metrics based on the
    bootstrap", SIGIR 2006); seeded: the same values give the same interval.
    """
    values = per_query.values[name]
    rng = np.random.default_rng(SEED)
    n = len(values)
    means: list[float] = []
    while len(means) < resamples:
        size = min(resamples - len(means), max(_BLOCK // n, 1))
        means += values[rng.integers(0, n, (size, n))].mean(axis=1).tolist()
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Mean(float(values.mean()), float(low), float(high))


def _by_rank(ranking: Mapping[str, float]) -> dict[str, float]:
    """Scores that fall by 1: trec_eval would break ties by document id, not as the search did."""
    return {document: float(-rank) for rank, document in enumerate(ranking)}


def _calculated(ir_measures: Any, wanted: list[Any], qrels: Qrels, run: Rankings) -> Any:
    return ir_measures.iter_calc(wanted, qrels, run) if run else ()
