"""Score queries against rows, with one kernel per kind of vector, on the CPU or a GPU.

Work has three levels: once when rows are loaded, once per block for many queries (the cast of rows
to float32), and once per tile of scores. Formulas: actors/scoring.py, the public interface. Shape
suffixes: Q queries, B rows of a block, N or M pairs, T tokens, W sparse weights, D dimension.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import torch

from actors.config import Output
from actors.errors import ModelError
from actors.network.batch_runner import SingleThreads
from actors.network.micro_batches import micro_batches
from actors.vectors import Column, SparseVectors, TokenVectors, dense_vectors

Scorer: TypeAlias = Callable[[int, int], torch.Tensor]
"""A function from start and stop to float32 scores [Q, B] of these queries, on the device."""

_ROWS = 4_096  # rows that are cast to float32, or gathered from a mapped file, at once
# Together these limit the scores of token pairs in memory at once to 16 MB.
_PASSAGE_TOKENS = 4_096
_QUERY_TOKENS = 1_024


class Floats:
    """A buffer per thread for casts to float32, reused for one tensor after another.

    New memory for each block would cost more than the cast, because the system clears its pages.
    """

    def __init__(self) -> None:
        self._own = threading.local()

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """Return the tensor as float32. This overwrites the previous result."""
        if values.dtype == torch.float32:
            return values
        memory: torch.Tensor | None = getattr(self._own, "memory", None)
        if memory is None or memory.numel() < values.numel() or memory.device != values.device:
            memory = self._own.memory = torch.empty(values.numel(), device=values.device)
        return memory[: values.numel()].view(values.shape).copy_(values)


class ScoredRows(Protocol):
    """Rows of one kind of vector that can be scored."""

    def scorer(self, queries: Column, floats: Floats) -> Scorer:
        """Return a scorer for an encoder's column of queries, valid until the next use of `floats`.

        Raises:
            ModelError: queries and rows differ in dimension.
        """


class DenseRows:
    """Dense vectors, scored by inner products in one matmul."""

    def __init__(self, column: Column, device: torch.device) -> None:
        """`column`: FixedSizeList<half|float>. On the CPU it is not copied, even if mapped."""
        self._rows_BD = _as_tensor(dense_vectors(column)).to(device)

    def scorer(self, queries: Column, floats: Floats) -> Scorer:
        """Return a scorer, as `ScoredRows`."""
        queries_QD = _as_tensor(dense_vectors(queries)).to(self._rows_BD.device).float()
        _check_same_dim(queries_QD, self._rows_BD)
        rows_DB = floats.of(self._rows_BD).T
        return lambda start, stop: queries_QD[start:stop] @ rows_DB


class SparseRows:
    """Sparse vectors, scored on the CPU with an inverted index over token ids."""

    def __init__(self, column: Column, device: torch.device) -> None:
        """`column`: Struct<indices, values>. The index maps a token id to rows and weights."""
        vectors = SparseVectors.of(column)
        order = np.argsort(vectors.indices_W, kind="stable")
        ids_W = vectors.indices_W[order]
        self._ids, firsts = np.unique(ids_W, return_index=True)
        self._offsets = np.append(firsts, len(ids_W))
        self._rows_W = vectors.rows_W.astype(np.int32)[order]
        self._values_W = vectors.values_W[order]
        self._n, self._device = len(vectors), device

    def scorer(self, queries: Column, floats: Floats) -> Scorer:
        """Return a scorer, as `ScoredRows`. Pairs without a shared token score 0."""
        vectors = SparseVectors.of(queries)

        def scores(start: int, stop: int) -> torch.Tensor:
            scores_QB = np.zeros((stop - start, self._n), dtype=np.float32)
            for query in range(start, stop) if len(self._ids) else ():
                own = slice(vectors.offsets[query], vectors.offsets[query + 1])
                ids, weights = vectors.indices_W[own], vectors.values_W[own]
                places = np.searchsorted(self._ids, ids)
                places[places == len(self._ids)] = 0
                known = self._ids[places] == ids
                for place, weight in zip(places[known], weights[known], strict=True):
                    at = slice(self._offsets[place], self._offsets[place + 1])
                    # The posting list of a token contains each row at most once.
                    scores_QB[query - start, self._rows_W[at]] += self._values_W[at] * weight
            return torch.from_numpy(scores_QB).to(self._device)

        return scores


class TokenVectorRows:
    """ColBERT vectors, scored by MaxSim: the mean over a query's tokens of the best inner product.

    A row or a query without tokens scores 0.
    """

    def __init__(self, column: Column, device: torch.device) -> None:
        """`column`: List<FixedSizeList<half|float>>. On the CPU it is not copied."""
        tokens = TokenVectors.of(column)
        self._tokens_TD, self._offsets = _as_tensor(tokens.vectors_TD).to(device), tokens.offsets

    def scorer(self, queries: Column, floats: Floats) -> Scorer:
        """Return a scorer, as `ScoredRows`."""
        tokens = TokenVectors.of(queries)
        queries_TD = _as_tensor(tokens.vectors_TD).to(self._tokens_TD.device).float()
        _check_same_dim(queries_TD, self._tokens_TD)

        def scores(start: int, stop: int) -> torch.Tensor:
            offsets = tokens.offsets[start : stop + 1]
            own_TD = queries_TD[offsets[0] : offsets[-1]]
            return _max_sim(own_TD, offsets - offsets[0], self._tokens_TD, self._offsets, floats)

        return scores


SCORED_ROWS: Mapping[Output, Callable[[Column, torch.device], ScoredRows]] = {
    "dense": DenseRows,
    "sparse": SparseRows,
    "colbert": TokenVectorRows,
}


def score_matrix(output: Output, queries: Column, rows: Column) -> np.ndarray:
    """Return float32 scores [Q, B] of all pairs, computed on the CPU. Raises as `ScoredRows`."""
    floats, found = Floats(), []
    for block in _blocks(output, rows):
        scorer = SCORED_ROWS[output](block, torch.device("cpu")).scorer(queries, floats)
        found.append(scorer(0, len(queries)).numpy())
    return np.concatenate([np.zeros((len(queries), 0), np.float32), *found], axis=1)


def _blocks(output: Output, rows: Column) -> Iterator[Column]:
    """Yield the rows in blocks, which are cast one at a time, without joining chunks."""
    for chunk in rows.chunks if isinstance(rows, pa.ChunkedArray) else [rows]:
        if output == "dense":
            vectors_BD = dense_vectors(chunk)
            for start in range(0, len(vectors_BD), _ROWS):
                yield vectors_BD[start : start + _ROWS]
        else:
            yield chunk


def score_pairs(
    output: Output,
    queries: Column,
    rows: Column,
    query_M: np.ndarray,
    row_M: np.ndarray,
    threads: SingleThreads,
) -> np.ndarray:
    """Return float32 scores [M] of pairs of a query and a row, computed on the CPU.

    Gathers a few thousand rows at a time first, as they may lie anywhere in a mapped file.
    """
    groups = [np.arange(len(query_M))]
    if output == "colbert":  # all rows of a query at once: one matmul instead of one per pair
        groups = [np.flatnonzero(query_M == query) for query in np.unique(query_M)]
    found_M, floats = np.empty(len(query_M), dtype=np.float32), Floats()

    def score(own: np.ndarray) -> None:
        gathered = rows.take(pa.array(row_M[own]))
        if output == "colbert":
            query = queries.take(pa.array(query_M[own[:1]]))
            scorer = TokenVectorRows(gathered, torch.device("cpu")).scorer(query, floats)
            found_M[own] = scorer(0, 1)[0].numpy()
        else:
            found_M[own] = ROW_PAIRS[output](queries.take(pa.array(query_M[own])), gathered)

    threads.run(score, [g[i : i + _ROWS] for g in groups for i in range(0, len(g), _ROWS)])
    return found_M


def _dense_pairs(queries: Column, rows: Column) -> np.ndarray:
    queries_ND, rows_ND = dense_vectors(queries), dense_vectors(rows)
    _check_same_dim(queries_ND, rows_ND)
    return np.asarray(  # einsum casts in small internal buffers
        np.einsum("nd,nd->n", queries_ND, rows_ND, dtype=np.float32, casting="same_kind")
    )


def _sparse_pairs(queries: Column, rows: Column) -> np.ndarray:
    query, row = SparseVectors.of(queries), SparseVectors.of(rows)
    _, left, right = np.intersect1d(
        query.keys_W, row.keys_W, assume_unique=True, return_indices=True
    )
    products = query.values_W[left] * row.values_W[right]
    return np.bincount(query.rows_W[left], products, minlength=len(query)).astype(np.float32)


def _colbert_pairs(queries: Column, rows: Column) -> np.ndarray:
    query, row = TokenVectors.of(queries), TokenVectors.of(rows)
    _check_same_dim(query.vectors_TD, row.vectors_TD)
    found_N = np.zeros(len(query), dtype=np.float32)
    for n in range(len(query)):  # numpy, because a torch call costs more than these products
        (a, b), (c, d) = query.offsets[n : n + 2], row.offsets[n : n + 2]
        if a < b and c < d:
            query_TD = query.vectors_TD[a:b].astype(np.float32, copy=False)
            row_TD = row.vectors_TD[c:d].astype(np.float32, copy=False)
            found_N[n] = (query_TD @ row_TD.T).max(axis=1).mean()
    return found_N


ROW_PAIRS: Mapping[Output, Callable[[Column, Column], np.ndarray]] = {
    "dense": _dense_pairs,
    "sparse": _sparse_pairs,
    "colbert": _colbert_pairs,
}
"""Functions that return float32 scores [N] of query i with row i."""


def _max_sim(
    query_TD: torch.Tensor,
    query_offsets: np.ndarray,
    tokens_TD: torch.Tensor,
    offsets: np.ndarray,
    floats: Floats,
) -> torch.Tensor:
    """Return MaxSim as float32 [Q, B] of float32 query_TD and tokens_TD of any floating type.

    query_offsets [Q + 1] and offsets [B + 1] say where queries and rows begin; both start at 0.
    """
    scores_QB = query_TD.new_empty(len(query_offsets) - 1, len(offsets) - 1)
    for start, stop in micro_batches(offsets, _PASSAGE_TOKENS):
        block_TD = floats.of(tokens_TD[offsets[start] : offsets[stop]])
        own = offsets[start : stop + 1] - offsets[start]
        for begin, end in micro_batches(query_offsets, _QUERY_TOKENS):
            block = query_TD[query_offsets[begin] : query_offsets[end]] @ block_TD.T
            best_TB = segments(block, own, "max")
            queries = query_offsets[begin : end + 1] - query_offsets[begin]
            sums_QB = segments(best_TB.T, queries, "sum").T
            lengths = torch.from_numpy(np.maximum(np.diff(queries), 1)).to(sums_QB)
            scores_QB[begin:end, start:stop] = sums_QB / lengths[:, None]
    return scores_QB


def segments(values: torch.Tensor, offsets: np.ndarray, reduce: str) -> torch.Tensor:
    """Return the maximum or sum of each segment of columns, as [A, len(offsets) - 1].

    `values`: [A, offsets[-1]]. An empty segment gives 0. On the CPU this uses numpy's reduceat,
    which takes half the time of torch's segment_reduce.
    """
    if values.device.type != "cpu":
        return segments_on_device(values, offsets, reduce)
    ufunc = {"max": np.maximum, "sum": np.add}[reduce]
    full = np.diff(offsets) > 0
    if full.all():
        return torch.from_numpy(ufunc.reduceat(values.numpy(), offsets[:-1], axis=1))
    found = np.zeros((len(values), len(full)), dtype=np.float32)
    if full.any():
        found[:, full] = ufunc.reduceat(values.numpy(), offsets[:-1][full], axis=1)
    return torch.from_numpy(found)


def segments_on_device(values: torch.Tensor, offsets: np.ndarray, reduce: str) -> torch.Tensor:
    """Compute `segments` without leaving the device."""
    places = torch.from_numpy(offsets).to(values.device)
    found = torch.segment_reduce(
        values.T.contiguous(), reduce, offsets=places, axis=0, initial=None
    ).T
    empty = (places.diff() == 0)[None, :]
    return found.masked_fill(empty, 0.0)


def _as_tensor(array: np.ndarray) -> torch.Tensor:
    """Return a tensor over the same memory, also if it is read-only: no code here writes to it."""
    array = np.ascontiguousarray(array)
    interface = array.__array_interface__
    writable = interface | {"data": (interface["data"][0], False)}  # else torch warns
    return torch.from_numpy(np.asarray(SimpleNamespace(__array_interface__=writable, owner=array)))


def _check_same_dim(queries: Any, rows: Any) -> None:
    if queries.shape[1:] != rows.shape[1:]:
        raise ModelError(
            f"expected queries and passages of the same dimension, found {queries.shape[1]} "
            f"and {rows.shape[1]}.",
            "Encode both with the same model and truncate_dim.",
        )
