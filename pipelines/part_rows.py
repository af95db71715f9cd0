"""Rows of a part: those that are live, or those asked for; no row group without one is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.storage import Store

Ranges = Sequence[tuple[int, int]]
"""[first, stop) pairs."""

_BATCH_ROWS = 4096


@dataclass(frozen=True)
class Part:
    """One part of a view, and the rows of it that are masked."""

    path: str
    rows: int
    masked: tuple[tuple[int, int], ...]
    """Sorted."""

    @cached_property
    def live(self) -> list[tuple[int, int]]:
        """What is between the masked rows."""
        ranges, at = [], 0
        for first, stop in self.masked:
            if first > at:
                ranges.append((at, first))
            at = max(at, stop)
        return [*ranges, (at, self.rows)] if at < self.rows else ranges


def rows_by_part(places: pa.Table) -> dict[str, list[tuple[int, int]]]:
    """The rows that a ledger or deletions name (part, first_row, n_rows), in their order."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    columns = (places[name].to_pylist() for name in ("part", "first_row", "n_rows"))
    for part, first, n in zip(*columns, strict=True):
        found[part].append((first, first + n))
    return found


def read_rows(store: Store, path: str, ranges: Ranges, names: Sequence[str]) -> Iterator[pa.Table]:
    """These rows of a part, in their order, these columns of them; some thousand at a time."""
    if not ranges:
        return
    with store.open_input(path) as file:
        parquet = pq.ParquetFile(file, pre_buffer=True)
        metadata = parquet.metadata
        wanted = np.zeros(metadata.num_rows, dtype=bool)
        for first, stop in ranges:
            wanted[first:stop] = True
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        by_group = np.split(wanted, np.cumsum(sizes)[:-1]) if sizes else []
        groups = [number for number, rows in enumerate(by_group) if rows.any()]
        if not groups:
            return
        left = np.concatenate([by_group[number] for number in groups])
        for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=groups, columns=list(names)):
            mine, left = left[: batch.num_rows], left[batch.num_rows :]
            table = pa.Table.from_batches([batch])
            yield table if mine.all() else table.filter(pa.array(mine))
