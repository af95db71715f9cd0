"""The interface of encoders: their properties and the batches they yield. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import pyarrow as pa

from actors.config import ComputeDtype, Output

SCORE = "score"
"""Output column of a reranker: float32, or FixedSizeList<float>[L] if L > 1 layers score."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Properties of an encoder or reranker that the records of an index contain."""

    name: str
    """Hub id, folder or URI, as in the configuration."""
    dim: int
    """Dimension of dense vectors; for a reranker, the number of scores of a pair."""
    colbert_dim: int | None = None
    """Dimension of ColBERT vectors; None for a model without a ColBERT head in use."""
    max_length: int
    """Longest passage or pair in tokens."""
    pooling: str = "none"
    """Pooling of hidden states into the dense vector."""
    dtype: ComputeDtype
    device: str
    space_fingerprint: str
    """Hash that is equal for models whose vectors or scores may be compared."""


@dataclass(frozen=True, kw_only=True)
class EncoderInfo(Identity):
    """Properties of a loaded encoder."""

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
    """{row of the block: reason}; the vectors of these rows in `columns` are invalid."""

    def moved(self, rows: int) -> EncodedBatch:
        """Return the batch with its row numbers increased by `rows`."""
        failures = {row + rows: reason for row, reason in self.failures.items()}
        return replace(self, start=self.start + rows, stop=self.stop + rows, failures=failures)

    @staticmethod
    def failed(row: int, reason: str, empty: pa.Table) -> EncodedBatch:
        """Return a batch of one failed row of nulls; `empty`: the output columns without rows."""
        nulls = pa.table([pa.nulls(1, field.type) for field in empty.schema], empty.schema)
        return EncodedBatch(row, row + 1, nulls, {row: reason})


class TokenEncoder(Protocol):
    """Interface of `Encoder`, `PairScorer` and `SimulatedEncoder`."""

    @property
    def info(self) -> Identity:
        """Properties of the model."""

    def stream(self, tokens: pa.Array | pa.ChunkedArray, /) -> Iterator[EncodedBatch]:
        """Yield the output columns of a column of tokens in batches of rows, in input order."""

    def empty(self) -> pa.Table:
        """Return the output columns with no rows."""
