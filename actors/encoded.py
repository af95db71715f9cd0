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
class EncoderInfo:
    """What an encoder is; `space_fingerprint` is equal where vectors may be compared."""

    name: str
    revision: str | None
    dim: int
    colbert_dim: int | None
    max_length: int
    query_max_length: int
    pooling: str
    normalize: bool
    outputs: tuple[Output, ...]
    vector_dtype: str
    dtype: ComputeDtype
    device: str
    space_fingerprint: str


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


class Identity(Protocol):
    """What the records of an index say of what computed it."""

    @property
    def name(self) -> str:
        """Hub id, folder, ..."""

    @property
    def dim(self) -> int:
        """Of dense vectors; of a reranker: scores of a pair."""

    @property
    def colbert_dim(self) -> int | None:
        """Of ColBERT vectors, where there are any."""

    @property
    def max_length(self) -> int:
        """Longest passage or pair in tokens."""

    @property
    def pooling(self) -> str:
        """How states become what is stored."""

    @property
    def dtype(self) -> ComputeDtype:
        """Compute type."""

    @property
    def device(self) -> str:
        """Where."""

    @property
    def space_fingerprint(self) -> str:
        """Equal where what it computes may be compared."""


class TokenEncoder(Protocol):
    """What makes output columns of token blocks: an `Encoder`, a `PairScorer`, a simulated one."""

    @property
    def info(self) -> Identity:
        """What it is."""

    def stream(self, tokens: pa.Array | pa.ChunkedArray, /) -> Iterator[EncodedBatch]:
        """The output columns of a column of tokens, some rows at a time, in input order."""

    def empty(self) -> pa.Table:
        """The output columns with no rows: their types."""
