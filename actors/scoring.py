"""Scores between queries and passages: dense, lexical, ColBERT's MaxSim, and their weighted mean.

    scores = dense_matrix(encoder.encode_queries(texts)["dense"], index_table["dense"])    # [Q, P]

Formulas: BGE-M3 (Chen et al. 2024, arXiv:2402.03216, section 3.2), as FlagEmbedding 1.4.2 computes
them in inference/embedder/encoder_only/m3.py; but nothing is padded here, so no zero vector takes
part in a maximum. Inputs are Arrow columns as an encoder or an index gives them (sliced and chunked
ones too), or numpy; scores are float32, whatever the vectors are stored as. Knows no model.
Shape suffixes: Q queries, P passages, N rows, T tokens, W sparse weights, D dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa

from actors.config import OUTPUTS, Output
from actors.errors import ModelError
from actors.micro_batches import micro_batches
from actors.vectors import Column, SparseVectors, TokenVectors, dense_vectors

Weights: TypeAlias = tuple[float, float, float]
_Rows = TypeVar("_Rows", "np.ndarray", "SparseVectors", "TokenVectors")

# Blocks bound the float32 copies: some 20 MB each, small enough for BLAS to stay in cache.
_DENSE_ROWS = 4_096
_PASSAGE_TOKENS = 4_096
_QUERY_TOKENS = 1_024
_LEXICAL_MATCHES = 1 << 22


def dense_matrix(queries: np.ndarray | Column, passages: np.ndarray | Column) -> np.ndarray:
    """Inner products [Q, P] of [Q, D] and [P, D]: cosines, where vectors are normalised.

    Raises:
        ModelError: the two have different dimensions.
    """
    queries_QD = dense_vectors(queries).astype(np.float32, copy=False)
    scores_QP = np.empty((len(queries_QD), len(passages)), dtype=np.float32)
    for first, part_PD in _parts(passages, dense_vectors):
        _same_dim(queries_QD, part_PD)
        for start in range(0, len(part_PD), _DENSE_ROWS):
            block_PD = part_PD[start : start + _DENSE_ROWS].astype(np.float32, copy=False)
            begin = first + start
            scores_QP[:, begin : begin + len(block_PD)] = queries_QD @ block_PD.T
    return scores_QP


def dense_pairs(queries: np.ndarray | Column, passages: np.ndarray | Column) -> np.ndarray:
    """Inner product [N] of each query with the passage of its row. Raises as `dense_matrix`."""
    queries_ND, passages_ND = dense_vectors(queries), dense_vectors(passages)
    _same_dim(queries_ND, passages_ND)
    _same_rows(len(queries_ND), len(passages_ND))
    return np.asarray(  # einsum casts in small buffers of its own
        np.einsum("nd,nd->n", queries_ND, passages_ND, dtype=np.float32, casting="same_kind")
    )


def sparse_matrix(queries: SparseVectors | Column, passages: SparseVectors | Column) -> np.ndarray:
    """Lexical matching [Q, P]: over the token ids two rows share, the sum of their products.

    0 where they share none, as an empty vector does with all. A join of the two columns on the
    token id, in numpy: no matrix of rows by vocabulary, and no need of scipy, whose product takes
    20 ms where this takes 80 (32 queries, 20,000 passages) and a dense one all the memory.
    """
    query = SparseVectors.of(queries)
    n_queries = len(query)
    order = np.argsort(query.indices_W, kind="stable")
    ids, firsts, counts = np.unique(query.indices_W[order], return_index=True, return_counts=True)
    rows_W, values_W = query.rows_W[order], query.values_W[order]
    scores_QP = np.zeros((n_queries, len(passages)), dtype=np.float32)
    if not len(ids):
        return scores_QP
    slots = np.full(int(ids[-1]) + 2, -1)  # token id -> its place in ids; the last one for larger
    slots[ids] = np.arange(len(ids))
    for first, part in _parts(passages, SparseVectors.of):
        for start, stop in micro_batches(part.offsets, max(_LEXICAL_MATCHES // n_queries, 1)):
            offsets = part.offsets[start : stop + 1]
            own = slice(offsets[0], offsets[-1])
            slot = slots[np.minimum(part.indices_W[own], len(slots) - 1)]
            found = np.flatnonzero(slot >= 0)
            slot = slot[found]
            passage = np.repeat(np.arange(stop - start), np.diff(offsets))[found]
            # Each found weight meets `repeats` weights of queries, neighbours in `order`.
            repeats = counts[slot]
            ends = np.cumsum(repeats)
            met = np.arange(ends[-1] if len(ends) else 0)
            met += np.repeat(firsts[slot] - ends + repeats, repeats)
            scores = np.bincount(
                rows_W[met] * (stop - start) + np.repeat(passage, repeats),
                weights=values_W[met] * np.repeat(part.values_W[own][found], repeats),
                minlength=n_queries * (stop - start),
            )
            scores_QP[:, first + start : first + stop] = scores.reshape(n_queries, -1)
    return scores_QP


def sparse_pairs(queries: SparseVectors | Column, passages: SparseVectors | Column) -> np.ndarray:
    """Lexical matching [N] of each query with the passage of its row."""
    query, passage = SparseVectors.of(queries), SparseVectors.of(passages)
    n = len(query)
    _same_rows(n, len(passage))
    _, left, right = np.intersect1d(
        query.keys_W, passage.keys_W, assume_unique=True, return_indices=True
    )
    products = query.values_W[left] * passage.values_W[right]
    return np.bincount(query.rows_W[left], products, minlength=n).astype(np.float32)


def colbert_matrix(queries: TokenVectors | Column, passages: TokenVectors | Column) -> np.ndarray:
    """MaxSim [Q, P]: over a query's tokens, the mean of the best inner product in the passage.

    A row without tokens (an encoder gives none: even "" has its end token) scores 0 with all.

    Raises:
        ModelError: the two have different dimensions.
    """
    query = TokenVectors.of(queries)
    scores_QP = np.empty((len(query), len(passages)), dtype=np.float32)
    for first, part in _parts(passages, TokenVectors.of):
        _same_dim(query.vectors_TD, part.vectors_TD)
        for start, stop in micro_batches(part.offsets, _PASSAGE_TOKENS):
            block_TD, offsets = _token_block(part, start, stop)
            for begin, end in micro_batches(query.offsets, _QUERY_TOKENS):
                query_TD, query_offsets = _token_block(query, begin, end)
                scores_QP[begin:end, first + start : first + stop] = _max_sim(
                    query_TD, query_offsets, block_TD, offsets
                )
    return scores_QP


def colbert_pairs(queries: TokenVectors | Column, passages: TokenVectors | Column) -> np.ndarray:
    """MaxSim [N] of each query with the passage of its row; otherwise as `colbert_matrix`."""
    query, passage = TokenVectors.of(queries), TokenVectors.of(passages)
    _same_dim(query.vectors_TD, passage.vectors_TD)
    _same_rows(len(query), len(passage))
    scores_N = np.empty(len(query), dtype=np.float32)
    for row in range(len(query)):
        own = _token_block(query, row, row + 1), _token_block(passage, row, row + 1)
        scores_N[row] = _max_sim(*own[0], *own[1])[0, 0]
    return scores_N


def weighted_mean(
    scores: Mapping[Output, np.ndarray], weights: Weights = (1.0, 1.0, 1.0)
) -> np.ndarray:
    """Sum of weight * score over sum of weight, of the scores given: pairs or matrices.

    Weights are those of (dense, sparse, colbert), as FlagEmbedding orders them. NaN where the
    weights used are all 0, as there.
    """
    if len(weights) != len(OUTPUTS):
        raise ValueError(f"expected weights of {', '.join(OUTPUTS)}, got {weights}")
    weight = dict(zip(OUTPUTS, weights, strict=True))
    total = sum(scores[output] * np.float32(weight[output]) for output in scores)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / np.float32(sum(weight[output] for output in scores)))


def pair_scores(
    queries: pa.Table, passages: pa.Table, weights: Weights = (1.0, 1.0, 1.0)
) -> dict[str, np.ndarray]:
    """FlagEmbedding's five `compute_score`s, float32 [N], of each query with its row's passage.

    Tables with the columns dense, sparse and colbert. Keys: colbert, sparse, dense, sparse+dense,
    colbert+sparse+dense (`weighted_mean`s).

    Raises:
        ModelError: a column is missing, or dimensions differ.
    """
    for side, table in (("queries", queries), ("passages", passages)):
        missing = [name for name in OUTPUTS if name not in table.column_names]
        if missing:
            raise ModelError(
                f"{side}: expected columns {', '.join(OUTPUTS)}, found no {', '.join(missing)}.",
                f"Encode with outputs={OUTPUTS}, or call the pair functions of what there is.",
            )
    dense = dense_pairs(queries["dense"], passages["dense"])
    sparse = sparse_pairs(queries["sparse"], passages["sparse"])
    colbert = colbert_pairs(queries["colbert"], passages["colbert"])
    return {
        "colbert": colbert,
        "sparse": sparse,
        "dense": dense,
        "sparse+dense": weighted_mean({"dense": dense, "sparse": sparse}, weights),
        "colbert+sparse+dense": weighted_mean(
            {"dense": dense, "sparse": sparse, "colbert": colbert}, weights
        ),
    }


def _max_sim(
    query_TD: np.ndarray, query_offsets: np.ndarray, block_TD: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    best_TP = _reduce_rows(np.maximum, query_TD @ block_TD.T, offsets, axis=1)
    sums_QP = _reduce_rows(np.add, best_TP, query_offsets, axis=0)
    return sums_QP / np.maximum(np.diff(query_offsets), 1).astype(np.float32)[:, None]


def _reduce_rows(ufunc: np.ufunc, values: np.ndarray, offsets: np.ndarray, axis: int) -> np.ndarray:
    """`ufunc` over each row's tokens; 0 for a row without, of which reduceat makes a neighbour."""
    full = np.diff(offsets) > 0
    shape = [len(full), values.shape[1]] if axis == 0 else [values.shape[0], len(full)]
    reduced = np.zeros(shape, dtype=np.float32)
    if full.any():
        rows = ufunc.reduceat(values, offsets[:-1][full], axis=axis)
        reduced[(full,) if axis == 0 else (slice(None), full)] = rows
    return reduced


def _token_block(tokens: TokenVectors, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    offsets = tokens.offsets[start : stop + 1]
    vectors_TD = tokens.vectors_TD[offsets[0] : offsets[-1]].astype(np.float32, copy=False)
    return vectors_TD, offsets - offsets[0]


def _parts(rows: Any, of: Callable[[Any], _Rows]) -> Iterator[tuple[int, _Rows]]:
    """(first row, rows) of each chunk: an index's column need not be copied into one."""
    first = 0
    for chunk in rows.chunks if isinstance(rows, pa.ChunkedArray) else [rows]:
        part = of(chunk)
        yield first, part
        first += len(part)


def _same_dim(queries: np.ndarray, passages: np.ndarray) -> None:
    if queries.shape[1:] != passages.shape[1:]:
        raise ModelError(
            f"expected vectors of one dimension, found {queries.shape[1]} for queries "
            f"and {passages.shape[1]} for passages.",
            "Encode both with the same model and truncate_dim.",
        )


def _same_rows(queries: int, passages: int) -> None:
    if queries != passages:
        raise ValueError(f"expected as many queries as passages, got {queries} and {passages}")
