"""Merge the rankings of shards, and combine the rankings and scores of several outputs.

Shape suffixes: Q queries, K best rows, M pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np

from actors.config import OUTPUTS, Output

if TYPE_CHECKING:
    import torch

Weights: TypeAlias = tuple[float, float, float]
"""Weights of dense, sparse and ColBERT, in FlagEmbedding's order."""
_Scores = TypeVar("_Scores", np.ndarray, "torch.Tensor")

Ranking: TypeAlias = Literal["dense", "sparse", "colbert", "hybrid"]
"""The score that orders rows. hybrid is the weighted mean of the scores of all outputs."""
Level: TypeAlias = Literal["passage", "document"]
"""The unit that is ranked. A document has the score of its best passage."""
Best: TypeAlias = tuple[np.ndarray, np.ndarray]
"""float32 scores [Q, K], best first, and int64 rows [Q, K], padded with -inf and -1."""


def merge(parts: Sequence[Best], top: int) -> Best:
    """Merge rankings of disjoint rows. Of equal scores, the lower row comes first."""
    scores_QM = np.concatenate([scores for scores, _ in parts], axis=1)
    rows_QM = np.concatenate([rows for _, rows in parts], axis=1)
    order = np.lexsort((rows_QM, -scores_QM), axis=1)[:, :top]
    return np.take_along_axis(scores_QM, order, 1), np.take_along_axis(rows_QM, order, 1)


def reciprocal_rank_fusion(parts: Sequence[Best], top: int, k: int = 60) -> Best:
    """Rank rows by the sum of 1 / (k + rank) over the rankings that contain them, ranks from 1.

    Source: Cormack, Clarke and Büttcher 2009, who set k = 60. Ties are ordered as in `merge`.
    """
    n = len(parts[0][0])
    query, place = np.concatenate([np.nonzero(rows >= 0) for _, rows in parts], axis=1)
    row = np.concatenate([rows[rows >= 0] for _, rows in parts])
    order = np.lexsort((row, query))
    query, row, gains = query[order], row[order], 1.0 / (k + 1 + place[order])
    firsts = np.flatnonzero(
        np.diff(query, prepend=-1).astype(bool) | np.diff(row, prepend=-1).astype(bool)
    )
    sums = np.add.reduceat(gains, firsts)
    return best_of_pairs(query[firsts], row[firsts], sums, n, top)


def best_of_pairs(
    query_M: np.ndarray, row_M: np.ndarray, score_M: np.ndarray, queries: int, top: int
) -> Best:
    """Return the best rows of each query from pairs in any order."""
    scores_QK = np.full((queries, top), -np.inf, dtype=np.float32)
    rows_QK = np.full((queries, top), -1)
    score_M = score_M.astype(np.float32)
    order = np.lexsort((row_M, -score_M, query_M))
    query_M, row_M, score_M = query_M[order], row_M[order], score_M[order]
    place = np.arange(len(query_M)) - np.searchsorted(query_M, query_M)
    kept = place < top
    scores_QK[query_M[kept], place[kept]] = score_M[kept]
    rows_QK[query_M[kept], place[kept]] = row_M[kept]
    return scores_QK, rows_QK


def weighted_mean(scores: Mapping[Output, _Scores], weights: Weights = (1.0, 1.0, 1.0)) -> _Scores:
    """Return sum(weight * score) / sum(weight) over the given outputs: float32 pairs or matrices.

    The result is NaN if all weights used are 0, as in FlagEmbedding.
    """
    if len(weights) != len(OUTPUTS):
        raise ValueError(f"expected weights of {', '.join(OUTPUTS)}, got {weights}")
    weight = dict(zip(OUTPUTS, weights, strict=True))
    total: Any = sum(scores[output] * weight[output] for output in scores)
    with np.errstate(invalid="ignore"):
        return total / sum(weight[output] for output in scores)  # type: ignore[no-any-return]
