"""What an encoder is to those who use it: what it says of itself, and what it gives.

Knows no torch: what only passes vectors on need not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import pyarrow as pa

from actors.config import ComputeDtype, Output

SCORE = "score"
"""What a reranker gives instead of vectors: float32 a pair, or a list of so many where several
layers score."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What the records of an index say of what computed it."""

    name: str
    """Hub id, folder, ..."""
    dim: int
    """Of dense vectors; of a reranker: scores of a pair."""
    colbert_dim: int | None = None
    """Of ColBERT vectors, where there are any."""
    max_length: int
    """Longest passage or pair in tokens."""
    pooling: str = "none"
    """How states become what is stored."""
    dtype: ComputeDtype
    device: str
    space_fingerprint: str
    """Equal where what it computes may be compared."""


@dataclass(frozen=True, kw_only=True)
class EncoderInfo(Identity):
    """What an encoder is."""

    revision: str | None
    query_max_length: int
    normalize: bool
    outputs: tuple[Output, ...]
    vector_dtype: str


@dataclass(frozen=True)
class EncodedBatch:
    """The vectors of rows [start, stop) of a token block."""

    start: int
    stop: int
    columns: pa.Table
    """The output columns, stop - start rows."""
    failures: dict[int, str]
    """Row of the block -> why its vectors cannot be used (its row in `columns` is garbage)."""

    def moved(self, rows: int) -> EncodedBatch:
        """The same batch as one of a block that begins so many rows earlier."""
        failures = {row + rows: reason for row, reason in self.failures.items()}
        return replace(self, start=self.start + rows, stop=self.stop + rows, failures=failures)

    @staticmethod
    def failed(row: int, reason: str, empty: pa.Table) -> EncodedBatch:
        """One row that cannot be encoded; `empty`: the output columns without rows."""
        nulls = pa.table([pa.nulls(1, field.type) for field in empty.schema], empty.schema)
        return EncodedBatch(row, row + 1, nulls, {row: reason})


class TokenEncoder(Protocol):
    """What makes output columns of token blocks: an `Encoder`, a `PairScorer`, a simulated one."""

    @property
    def info(self) -> Identity:
        """What it is."""

    def stream(self, tokens: pa.Array | pa.ChunkedArray, /) -> Iterator[EncodedBatch]:
        """The output columns of a column of tokens, some rows at a time, in input order."""

    def empty(self) -> pa.Table:
        """The output columns with no rows: their types."""
