"""Whether one system is better than another on the same queries, or was lucky."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actors.errors import ConfigError
from pipelines.evaluation.metrics import MEASURES, SEED, PerQuery

PERMUTATIONS = 10_000
_BLOCK = 1 << 22  # signs at once
_ROUNDING = 1e-12
_TIE = 1e-9


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same queries by one measure."""

    difference: float
    """Mean of the second less mean of the first."""
    p: float
    """How probable a difference at least so large, either way, is between equals."""
    p_holm: float
    """The same, corrected for how many systems were compared at once."""
    wins: int
    """Queries on which the second is better."""
    losses: int
    ties: int


def compare(first: PerQuery, second: PerQuery) -> dict[str, Comparison]:
    """The second against the first, by measure.

    Raises:
        ConfigError: they answered different queries.
    """
    return compare_pairs({"": (first, second)})[""]


def compare_all(
    baseline: PerQuery, others: Mapping[str, PerQuery]
) -> dict[str, dict[str, Comparison]]:
    """Each against the baseline: name -> measure -> comparison; corrected as `compare_pairs` does.

    Raises:
        ConfigError: one answered other queries than the baseline.
    """
    return compare_pairs({name: (baseline, other) for name, other in others.items()})


def compare_pairs(
    pairs: Mapping[str, tuple[PerQuery, PerQuery]],
) -> dict[str, dict[str, Comparison]]:
    """The second of each pair against its first: name -> measure -> comparison.

    For each measure p values are corrected over the names by Holm's procedure (Holm, "A simple
    sequentially rejective multiple test procedure", 1979).

    Raises:
        ConfigError: the two of a pair answered different queries.
    """
    found: dict[str, dict[str, Comparison]] = {name: {} for name in pairs}
    for name, (first, second) in pairs.items():
        _check_same_queries(first, name, second)
    for measure in MEASURES:
        gains = {name: b.values[measure] - a.values[measure] for name, (a, b) in pairs.items()}
        p_values = [permutation_p(each) for each in gains.values()]
        for (name, each), p, p_holm in zip(gains.items(), p_values, holm(p_values), strict=True):
            wins, losses = int((each > _TIE).sum()), int((each < -_TIE).sum())
            ties = len(each) - wins - losses
            found[name][measure] = Comparison(float(each.mean()), p, p_holm, wins, losses, ties)
    return found


def permutation_p(differences: np.ndarray) -> float:
    """Two-sided p of a paired randomisation test on the mean of `differences` (float[queries]).

    Between equals the sign of each query's difference is chance (Smucker, Allan and Carterette, "A
    comparison of statistical significance tests for information retrieval evaluation", CIKM 2007).
    All signs where there are at most 10,000 ways, else 10,000 drawn with a fixed seed, the observed
    one counted among them (so that p is never 0).
    """
    changed = differences[np.abs(differences) > _TIE]
    n = len(changed)
    if n == 0:
        return 1.0
    least = abs(changed.sum()) - _ROUNDING * np.abs(changed).sum()
    if 2**n <= PERMUTATIONS:
        ways = np.arange(2**n)[:, None] >> np.arange(n) & 1
        return float((np.abs((2 * ways - 1) @ changed) >= least).mean())
    rng = np.random.default_rng(SEED)
    at_once = max(_BLOCK // n, 1)
    extreme = 0
    for done in range(0, PERMUTATIONS, at_once):
        size = (min(at_once, PERMUTATIONS - done), n)
        positive = rng.integers(0, 2, size, dtype=np.int8).astype(np.float64) @ changed
        extreme += int((np.abs(2 * positive - changed.sum()) >= least).sum())
    return (extreme + 1) / (PERMUTATIONS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """The same p values, corrected for there being several; in their order."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for done, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - done) * p_values[i]))
        corrected[i] = largest
    return corrected


def _check_same_queries(first: PerQuery, name: str, second: PerQuery) -> None:
    if first.query_ids == second.query_ids:
        return
    shared = len(set(first.query_ids).intersection(second.query_ids))
    raise ConfigError(
        f"comparison{f' of {name}' if name else ''}: expected the same judged queries on both "
        f"sides, found {len(first.query_ids):,} and {len(second.query_ids):,}, "
        f"{shared:,} of them on both.",
        "Evaluate both with the same queries and judgements.",
    )
