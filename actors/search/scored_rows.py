"""A block of rows by one kind of vector, scored against many queries at once.

What is made once, when a shard is loaded, and what is made once for many queries (a block cast to
float32) are apart from what runs for each tile of scores.
Shape suffixes: Q queries, B rows of the block, T tokens, D dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import torch

from actors.config import Output
from actors.search.postings import Postings
from actors.search.tiles import Floats, as_tensor, max_sim_tile
from actors.vectors import Column, SparseVectors, TokenVectors, dense_vectors

Scorer: TypeAlias = Callable[[int, int], torch.Tensor]
"""float32 scores [Q, B] of queries [start, stop), on the device."""


class ScoredRows(Protocol):
    """Rows of one kind of vector."""

    def scorer(self, queries: Column, floats: Floats) -> Scorer:
        """For an encoder's column of queries; good until `floats` is used for other rows."""


class DenseRows:
    """Inner products: one matmul."""

    def __init__(self, column: Column, device: torch.device) -> None:
        """FixedSizeList<half|float>; on a CPU it stays where it is, mapped from a file or not."""
        self._rows_BD = as_tensor(dense_vectors(column)).to(device)

    def scorer(self, queries: Column, floats: Floats) -> Scorer:
        """As `ScoredRows`."""
        queries_QD = as_tensor(dense_vectors(queries)).to(self._rows_BD.device).float()
        rows_DB = floats.of(self._rows_BD).T
        return lambda start, stop: queries_QD[start:stop] @ rows_DB


class SparseRows:
    """Lexical matching: an inverted index, on the CPU."""

    def __init__(self, column: Column, device: torch.device) -> None:
        """Struct<indices, values>."""
        self._postings = Postings(SparseVectors.of(column))
        self._device = device

    def scorer(self, queries: Column, floats: Floats) -> Scorer:
        """As `ScoredRows`."""
        vectors = SparseVectors.of(queries)
        return lambda start, stop: torch.from_numpy(
            self._postings.scores(vectors.rows(start, stop))
        ).to(self._device)


class TokenRows:
    """ColBERT's MaxSim."""

    def __init__(self, column: Column, device: torch.device) -> None:
        """List<FixedSizeList<half|float>>; on a CPU it stays where it is."""
        tokens = TokenVectors.of(column)
        self._tokens_TD, self._offsets = as_tensor(tokens.vectors_TD).to(device), tokens.offsets

    def scorer(self, queries: Column, floats: Floats) -> Scorer:
        """As `ScoredRows`."""
        tokens = TokenVectors.of(queries)
        queries_TD = as_tensor(tokens.vectors_TD).to(self._tokens_TD.device).float()

        def scores(start: int, stop: int) -> torch.Tensor:
            offsets = tokens.offsets[start : stop + 1]
            own_TD = queries_TD[offsets[0] : offsets[-1]]
            own = offsets - offsets[0]
            return max_sim_tile(own_TD, own, self._tokens_TD, self._offsets, floats)

        return scores


SCORED_ROWS: Mapping[Output, Callable[[Column, torch.device], ScoredRows]] = {
    "dense": DenseRows,
    "sparse": SparseRows,
    "colbert": TokenRows,
}
