"""Which rows of a column share a forward pass, and where their tokens lie. Imports no torch.

Shape suffixes: T tokens of the rows, N rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenRows:
    """Where the tokens of some rows of a column lie in it."""

    places_T: np.ndarray
    """int64 [T]: index into the column's values."""
    cu_seqlens: np.ndarray
    """int64 [N + 1]."""

    @staticmethod
    def of(offsets: np.ndarray, rows: np.ndarray) -> TokenRows:
        """Of rows values[offsets[row]:offsets[row + 1]], in the order given."""
        lengths = offsets[rows + 1] - offsets[rows]
        cu_seqlens = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        shifts = np.repeat(offsets[rows] - cu_seqlens[:-1], lengths)
        return TokenRows(np.arange(cu_seqlens[-1]) + shifts, cu_seqlens)


def micro_batches(offsets: np.ndarray, max_tokens: int) -> Iterator[tuple[int, int]]:
    """(start, stop) rows of consecutive passages within a token budget, in input order.

    A passage longer than the budget gets a micro-batch of its own.
    """
    start, rows = 0, len(offsets) - 1
    while start < rows:
        stop = next_stop(offsets, start, max_tokens)
        yield start, stop
        start = stop


def next_stop(offsets: np.ndarray, start: int, max_tokens: int) -> int:
    """Where the micro-batch that begins at row `start` ends."""
    fits = int(np.searchsorted(offsets, offsets[start] + max_tokens, side="right")) - 1
    return min(max(fits, start + 1), len(offsets) - 1)
