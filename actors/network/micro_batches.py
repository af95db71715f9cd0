"""Divide rows into micro-batches and locate their tokens. Imports no torch.

Shape suffixes: T tokens of the rows, N rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenRows:
    """Positions of the tokens of selected rows of a column."""

    places_T: np.ndarray
    """Indices into the column's values, int64 [T]."""
    cu_seqlens: np.ndarray
    """Cumulative sequence lengths, int64 [N + 1]."""

    @staticmethod
    def of(offsets: np.ndarray, rows: np.ndarray) -> TokenRows:
        """Locate rows values[offsets[row]:offsets[row + 1]], in the given order."""
        lengths = offsets[rows + 1] - offsets[rows]
        cu_seqlens = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        shifts = np.repeat(offsets[rows] - cu_seqlens[:-1], lengths)
        return TokenRows(np.arange(cu_seqlens[-1]) + shifts, cu_seqlens)


def micro_batches(offsets: np.ndarray, max_tokens: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) rows within a token budget, in order; a longer passage is alone."""
    start, rows = 0, len(offsets) - 1
    while start < rows:
        stop = next_stop(offsets, start, max_tokens)
        yield start, stop
        start = stop


def next_stop(offsets: np.ndarray, start: int, max_tokens: int) -> int:
    """Return the row after the micro-batch that begins at row `start`; at least `start` + 1."""
    fits = int(np.searchsorted(offsets, offsets[start] + max_tokens, side="right")) - 1
    return min(max(fits, start + 1), len(offsets) - 1)
