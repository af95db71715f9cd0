"""Token ids of pairs, as numpy arrays and as an Arrow column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

PAIR_TOKENS_TYPE = pa.struct([("ids", pa.list_(pa.int32())), ("passage_start", pa.int32())])
"""Token ids of a pair, and the number of tokens before its passage."""


@dataclass(frozen=True)
class PairShape:
    """Properties that all pairs of one tokenizer share."""

    types: tuple[int, int]
    """Token type before the passage, and from the passage on."""
    tail: int
    """Number of tokens after the passage."""


@dataclass(frozen=True)
class PairTokens:
    """Token ids of N pairs; pair i is values[offsets[i]:offsets[i + 1]]."""

    values: np.ndarray
    """Token ids, int32 [T]."""
    offsets: np.ndarray
    """Start of each pair and the end of the last, int64 [N + 1]."""
    types: np.ndarray
    """Token types, int32 [T]; all 0 for a model without types."""
    passage_starts: np.ndarray
    """Number of tokens before the passage of each pair, int64 [N]."""
    tail: int
    """Number of tokens after the passage of every pair."""
    truncated: np.ndarray
    """Whether the pair was truncated to the reranker's `max_length`, bool [N]."""

    @staticmethod
    def of(
        *,
        values: np.ndarray,
        offsets: np.ndarray,
        passage_starts: np.ndarray,
        truncated: np.ndarray,
        shape: PairShape,
    ) -> PairTokens:
        """Create an object, computing the token types from `shape`."""
        lengths = np.diff(offsets)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        is_second = within >= np.repeat(passage_starts, lengths)
        first, second = shape.types
        types = np.where(is_second, second, first).astype(np.int32)
        return PairTokens(values, offsets, types, passage_starts, shape.tail, truncated)

    @staticmethod
    def from_arrow(column: pa.StructArray | pa.ChunkedArray, shape: PairShape) -> PairTokens:
        """Convert a column of PAIR_TOKENS_TYPE; `truncated` is all false."""
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        ids, starts = column.flatten()  # respects the offset of a sliced array
        offsets = ids.offsets.to_numpy().astype(np.int64)
        return PairTokens.of(
            values=ids.flatten().to_numpy(),
            offsets=offsets - offsets[0],
            passage_starts=starts.to_numpy().astype(np.int64),
            truncated=np.zeros(len(ids), dtype=bool),
            shape=shape,
        )

    def to_arrow(self) -> pa.StructArray:
        """Return a column of PAIR_TOKENS_TYPE, without `truncated`."""
        ids = pa.ListArray.from_arrays(pa.array(self.offsets, pa.int32()), pa.array(self.values))
        starts = pa.array(self.passage_starts, pa.int32())
        return pa.StructArray.from_arrays([ids, starts], fields=list(PAIR_TOKENS_TYPE))

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each pair, int64 [N]."""
        return np.diff(self.offsets)

    def part(self, start: int, stop: int) -> PairTokens:
        """Return pairs [start, stop)."""
        first, last = self.offsets[start], self.offsets[stop]
        return PairTokens(
            values=self.values[first:last],
            offsets=self.offsets[start : stop + 1] - first,
            types=self.types[first:last],
            passage_starts=self.passage_starts[start:stop],
            tail=self.tail,
            truncated=self.truncated[start:stop],
        )

    @staticmethod
    def joined(parts: Sequence[PairTokens]) -> PairTokens:
        """Concatenate one or more parts of the same tokenizer."""
        lengths = np.concatenate([part.lengths for part in parts])
        return PairTokens(
            values=np.concatenate([part.values for part in parts]),
            offsets=np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
            types=np.concatenate([part.types for part in parts]),
            passage_starts=np.concatenate([part.passage_starts for part in parts]),
            tail=parts[0].tail,
            truncated=np.concatenate([part.truncated for part in parts]),
        )

    def cut_passages(self, most: int) -> tuple[PairTokens, np.ndarray]:
        """Truncate passages to `most` tokens; return the pairs and which of them changed, bool [N].

        `truncated` does not change: it only reports pairs that were too long for the reranker.
        """
        lengths = self.lengths
        passages = lengths - self.passage_starts - self.tail
        is_cut = passages > most
        if not is_cut.any():
            return self, is_cut
        at_T = np.arange(len(self.values)) - np.repeat(self.offsets[:-1], lengths)
        first_T = np.repeat(self.passage_starts + most, lengths)
        after_T = np.repeat(lengths - self.tail, lengths)
        kept_T = (at_T < first_T) | (at_T >= after_T)
        kept_lengths = lengths - np.maximum(passages - most, 0)
        offsets = np.concatenate(([0], np.cumsum(kept_lengths, dtype=np.int64)))
        cut = replace(self, values=self.values[kept_T], types=self.types[kept_T], offsets=offsets)
        return cut, is_cut

    def rows(self) -> list[list[int]]:
        """Return the ids of each pair."""
        return [
            self.values[start:stop].tolist()
            for start, stop in zip(self.offsets[:-1], self.offsets[1:], strict=True)
        ]
