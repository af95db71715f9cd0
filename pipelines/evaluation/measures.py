"""Measure rankings per query, and compute confidence intervals and significance tests.

The measures are BEIR's (Thakur et al., NeurIPS 2021), computed by ir-measures (MacAvaney et al.,
ECIR 2022), which uses trec_eval for nDCG, recall and AP.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from actors.errors import ConfigError
from pipelines.evaluation.dataset import Qrels, Rankings

_NEEDED_BY = {"eval": "evaluation", "notebooks": "notebooks"}


def extra(module: str, name: Literal["eval", "notebooks"] = "eval") -> Any:
    """Import a module that the package extra `name` installs.

    Raises:
        ConfigError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{_NEEDED_BY[name]}: expected the package {error.name}, found none.",
            f"pip install 'packvec[{name}]'",
        ) from None


MEASURES = ("nDCG@10", "R@100", "RR@10", "AP")
"""The measures in the notation of ir-measures. The first is the main measure of BEIR."""

CONFIDENCE = 0.95
RESAMPLES = 2000
PERMUTATIONS = 10_000
_SEED = 0
_BLOCK = 1 << 20  # values resampled at once, to limit memory
_TIE = 1e-9


@dataclass(frozen=True)
class PerQuery:
    """The measures of each query."""

    query_ids: tuple[str, ...]
    """Ids of the queries, sorted."""
    values: Mapping[str, np.ndarray]
    """Measure -> float64 [queries], in the order of `query_ids`."""


@dataclass(frozen=True)
class Mean:
    """A mean over queries, with its confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """The comparison of two systems on the same queries by one measure."""

    difference: float
    """The mean of the second system minus the mean of the first."""
    p: float
    """The two-sided p value: probability of at least this difference between equal systems."""
    p_holm: float
    """The p value, corrected for the number of systems compared."""
    wins: int
    """The number of queries on which the second system is better."""
    losses: int
    ties: int


Compared = dict[str, dict[str, Comparison]]
"""Name -> measure -> comparison."""


def measure(qrels: Qrels, rankings: Rankings) -> PerQuery:
    """Return every measure of every judged query. Judged queries without results count as 0.

    Queries without judgements are left out. The order of a ranking counts, not its scores.
    Relevance below 0 counts as 0. AP uses the whole ranking; published values use 1,000 results.

    Raises:
        ConfigError: ir-measures is not installed.
    """
    ir_measures = extra("ir_measures")
    wanted = {ir_measures.parse_measure(name): name for name in MEASURES}
    query_ids = tuple(sorted(qrels))
    values = {name: dict.fromkeys(query_ids, 0.0) for name in MEASURES}
    judged = {
        query: {document: max(relevance, 0) for document, relevance in documents.items()}
        for query, documents in qrels.items()
    }
    # Use scores that fall by 1, because trec_eval breaks ties by document id, unlike the search.
    run = {
        query: {document: float(-rank) for rank, document in enumerate(rankings[query])}
        for query in query_ids
        if rankings.get(query)
    }
    for one in ir_measures.iter_calc(list(wanted), judged, run) if run else ():
        values[wanted[one.measure]][one.query_id] = one.value
    return PerQuery(query_ids, {name: np.array([*own.values()]) for name, own in values.items()})


def without_identical_ids(rankings: Rankings) -> Rankings:
    """Remove the document whose id equals the query's id from each ranking.

    BEIR does this for ArguAna and Quora, whose queries are documents of the corpus.
    """
    return {
        query: {document: score for document, score in ranking.items() if document != query}
        for query, ranking in rankings.items()
    }


def first_relevant(qrels: Qrels, rankings: Rankings) -> dict[str, tuple[int, str] | None]:
    """Return rank, from 1, and id of each query's first relevant document; None if not found."""
    first: dict[str, tuple[int, str] | None] = {}
    for query, judged in qrels.items():
        found = enumerate(rankings.get(query, ()), start=1)
        first[query] = next((at for at in found if judged.get(at[1], 0) > 0), None)
    return first


def mean_of(per_query: PerQuery, name: str, *, resamples: int = RESAMPLES) -> Mean:
    """Return the mean of a measure with its 95 % bootstrap percentile interval.

    Queries are drawn with replacement (Sakai, "Evaluating evaluation metrics based on the
    bootstrap", SIGIR 2006). The seed is fixed: the same values give the same interval.

    Raises:
        ConfigError: SciPy is not installed.
    """
    values = per_query.values[name]
    mean = float(values.mean())
    if len(values) == 1:
        return Mean(mean, mean, mean)
    found = extra("scipy.stats").bootstrap(
        (values,), np.mean, n_resamples=resamples, confidence_level=CONFIDENCE, rng=_SEED,
        method="percentile", batch=max(_BLOCK // len(values), 1),
    )  # fmt: skip
    low, high = found.confidence_interval
    return Mean(mean, float(low), float(high))


def compare(first: PerQuery, second: PerQuery) -> dict[str, Comparison]:
    """Compare the second system with the first by each measure.

    Raises:
        ConfigError: they answered different queries.
    """
    return compare_pairs({"": (first, second)})[""]


def compare_all(baseline: PerQuery, others: Mapping[str, PerQuery]) -> Compared:
    """Compare each system with the baseline. p values are corrected as in `compare_pairs`.

    Raises:
        ConfigError: a system answered other queries than the baseline.
    """
    return compare_pairs({name: (baseline, other) for name, other in others.items()})


def compare_pairs(pairs: Mapping[str, tuple[PerQuery, PerQuery]]) -> Compared:
    """Compare the second system of each pair with the first.

    For each measure, p values are corrected over the pairs by Holm's procedure (Holm, "A simple
    sequentially rejective multiple test procedure", 1979).

    Raises:
        ConfigError: the systems of a pair answered different queries.
    """
    found: Compared = {name: {} for name in pairs}
    for name, (first, second) in pairs.items():
        if first.query_ids != second.query_ids:
            shared = len(set(first.query_ids).intersection(second.query_ids))
            raise ConfigError(
                f"comparison{f' of {name}' if name else ''}: expected the same judged queries on "
                f"both sides, found {len(first.query_ids):,} and {len(second.query_ids):,}, "
                f"{shared:,} of them on both.",
                "Evaluate both with the same queries and judgements.",
            )
    for measure in MEASURES:
        gains = {name: b.values[measure] - a.values[measure] for name, (a, b) in pairs.items()}
        p_values = [permutation_p(each) for each in gains.values()]
        for (name, each), p, p_holm in zip(gains.items(), p_values, holm(p_values), strict=True):
            wins, losses = int((each > _TIE).sum()), int((each < -_TIE).sum())
            ties = len(each) - wins - losses
            found[name][measure] = Comparison(float(each.mean()), p, p_holm, wins, losses, ties)
    return found


def permutation_p(differences: np.ndarray) -> float:
    """Return the two-sided p of a paired randomisation test of the mean of float [queries].

    If the systems are equal, the sign of each difference is random (Smucker, Allan and Carterette,
    "A comparison of statistical significance tests for information retrieval evaluation", CIKM
    2007). Tests all sign patterns if there are at most 10,000, else 10,000 random ones with a fixed
    seed. The observed pattern is counted too, so p is never 0.

    Raises:
        ConfigError: SciPy is not installed.
    """
    changed = differences[np.abs(differences) > _TIE]
    if len(changed) < 2:
        return 1.0
    test = extra("scipy.stats").permutation_test(
        (changed,), np.sum, permutation_type="samples", n_resamples=PERMUTATIONS, rng=_SEED,
        batch=max(_BLOCK // len(changed), 1),
    )  # fmt: skip
    return float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values, in their order, corrected for multiple tests by Holm's procedure."""
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(factors * np.take(p_values, order)).clip(max=1.0)
    return corrected.tolist()
