"""Scores of some pairs of a query and a row, as `actors.scoring` has them: [M] of M pairs.

Rows are gathered first, some thousand at a time: they may lie anywhere in a mapped file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from actors.config import Output
from actors.scoring import colbert_matrix, dense_pairs, sparse_pairs
from actors.vectors import Column

PairScores: TypeAlias = Callable[[Column, Column, np.ndarray, np.ndarray], np.ndarray]
"""(queries, rows, query of each pair [M], row of each pair [M]) -> float32 [M]."""

_PAIRS = 4_096


def _elementwise(score: Callable[[Any, Any], np.ndarray]) -> PairScores:
    def scores(queries: Column, rows: Column, query_M: np.ndarray, row_M: np.ndarray) -> np.ndarray:
        found = np.empty(len(query_M), dtype=np.float32)
        for own in _slices(np.arange(len(query_M))):
            pairs = queries.take(pa.array(query_M[own])), rows.take(pa.array(row_M[own]))
            found[own] = score(*pairs)
        return found

    return scores


def _max_sim(queries: Column, rows: Column, query_M: np.ndarray, row_M: np.ndarray) -> np.ndarray:
    """All rows of a query at once: one matmul, not one a pair."""
    found = np.empty(len(query_M), dtype=np.float32)
    for query in np.unique(query_M):
        for own in _slices(np.flatnonzero(query_M == query)):
            one = queries.take(pa.array([query]))
            found[own] = colbert_matrix(one, rows.take(pa.array(row_M[own])))[0]
    return found


def _slices(places: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(places), _PAIRS):
        yield places[start : start + _PAIRS]


PAIR_SCORES: Mapping[Output, PairScores] = {
    "dense": _elementwise(dense_pairs),
    "sparse": _elementwise(sparse_pairs),
    "colbert": _max_sim,
}
