"""Live rows as blocks: some thousand neighbouring rows, never a part of a document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_ROWS = 8_192
_TOKENS = 262_144  # of ColBERT vectors, 512 MB at 1,024 dimensions: a block is written at once


def in_blocks(
    tables: Iterable[pa.Table], rows: int = _ROWS, tokens: int = _TOKENS
) -> Iterator[pa.RecordBatch]:
    """Rows with `doc_id` and `n_tokens`, cut between documents; a longer document is a block.

    A block has at most so many rows and so many tokens.
    """
    waiting: list[pa.Table] = []
    for table in tables:
        if table.num_rows:
            waiting.append(table)
            table = pa.concat_tables(waiting)
            *stops, end = _stops(table, rows, tokens)
            for start, stop in zip([0, *stops], stops, strict=False):
                yield _one_batch(table.slice(start, stop - start))
            waiting = [table.slice(stops[-1] if stops else 0, end)]
    if waiting:
        yield _one_batch(pa.concat_tables(waiting))


def _stops(table: pa.Table, rows: int, tokens: int) -> list[int]:
    """Where blocks end; the last one, of which more rows may follow, at the end of the table."""
    ids = table["doc_id"].combine_chunks()
    changes = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    ends = np.append(np.flatnonzero(changes) + 1, len(ids))
    before = np.concatenate([[0], np.cumsum(table["n_tokens"].to_numpy())])
    stops, start = [], 0
    while start < len(ids):
        limit = np.searchsorted(before, before[start] + tokens, side="right") - 1
        at = np.searchsorted(ends, min(start + rows, limit), side="right") - 1
        first = np.searchsorted(ends, start, side="right")
        start = int(ends[max(at, first)])
        stops.append(start)
    return stops


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    """One batch: an Arrow file is mapped batch by batch."""
    return table.combine_chunks().to_batches()[0]
