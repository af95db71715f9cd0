"""Decides where each passage of a slice gets its vectors: encoder, index, or an equal passage.

Passages are equal if their `passage_hash` is equal: the encoder gets the same tokens. Of equal
passages the first is encoded. Passages that an edited document had before take their vectors from
the index. Vectors are returned in passage order. Memory holds only the vectors that a later passage
needs again, and about 32 MB of vectors from the index.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors.encoded import EncodedBatch
from pipelines.index.parts import ColbertStorage, stored_vectors
from pipelines.index.schemas import HASH
from pipelines.store.store import Store

_WINDOW_BYTES = 32 << 20
_THREADS = 16

OldRows = tuple[str, int, int]
"""A document's rows in the index: part, first row, number of rows."""


@dataclass(frozen=True)
class _Old:
    """One row of the index: a part, a row group, and the row within it."""

    part: str
    group: int
    row: int


class VectorSources:
    """Assigns a source to each passage of one slice, and assembles the vectors."""

    def __init__(
        self,
        store: Store,
        hashes: pa.ChunkedArray,
        edited: Sequence[OldRows],
        empty: pa.Table,
        storage: ColbertStorage,
    ) -> None:
        """`hashes`: passage_hash of each passage; `edited`: the old rows of edited documents;
        `empty`: the encoder's columns without rows.

        Raises:
            StorageError: a part cannot be read.
        """
        self._store, self._storage = store, storage
        self._nothing = stored_vectors(empty, storage)
        coded = hashes.combine_chunks().dictionary_encode()
        self._group = coded.indices.to_numpy()
        self._n = len(self._group)
        groups = len(coded.dictionary)
        self._first = np.full(groups, self._n)
        np.minimum.at(self._first, self._group, np.arange(self._n))
        self._last = np.zeros(groups, np.int64)
        np.maximum.at(self._last, self._group, np.arange(self._n))
        self._old = _find_old(store, coded.dictionary, edited) if edited else {}
        encoded = np.array([g not in self._old for g in range(groups)], bool)
        self.to_encode: np.ndarray = np.sort(self._first[encoded])
        """int64: the passages that the model encodes, ascending."""
        self._encoded_as = {int(self._group[p]): i for i, p in enumerate(self.to_encode)}
        self._held: dict[int, pa.Table] = {}
        self._failed: dict[int, str] = {}

    @property
    def is_plain(self) -> bool:
        """Whether every passage is encoded, and none is reused."""
        return len(self.to_encode) == self._n

    def put_together(self, encoded: Iterable[EncodedBatch]) -> Iterator[EncodedBatch]:
        """Yield the vectors of all passages, in order, as a part stores them.

        `encoded`: the encoded passages, numbered by their index in `to_encode`.
        """
        position = 0
        for batch in encoded:
            columns = stored_vectors(batch.columns, self._storage)
            if self.is_plain:
                yield replace(batch, columns=columns)
                continue
            for row, reason in batch.failures.items():
                self._failed[int(self._group[self.to_encode[row]])] = reason
            more = batch.stop < len(self.to_encode)
            stop = int(self.to_encode[batch.stop]) if more else self._n
            yield from self._windows(position, stop, columns, batch.start)
            self._hold(columns, batch, stop)
            position = stop
        if not self.is_plain and position < self._n:
            yield from self._windows(position, self._n, self._nothing, 0)

    def _hold(self, columns: pa.Table, batch: EncodedBatch, stop: int) -> None:
        """Keep only the vectors that passages from `stop` on need."""
        for row in range(batch.start, batch.stop):
            group = int(self._group[self.to_encode[row]])
            if self._last[group] >= stop:
                # `take` copies; a slice would keep the whole batch in memory.
                self._held[group] = columns.take([row - batch.start])
        for group in [group for group in self._held if self._last[group] < stop]:
            del self._held[group]

    def _windows(
        self, start: int, stop: int, columns: pa.Table, first: int
    ) -> Iterator[EncodedBatch]:
        """Yield [start, stop) in windows; `columns`: vectors of `to_encode` from `first` on."""
        row_bytes = columns.nbytes // max(columns.num_rows, 1) or 4096
        step = max(_WINDOW_BYTES // row_bytes, 1)
        for low in range(start, stop, step):
            high = min(low + step, stop)
            yield self._window(low, high, columns, first)

    def _window(self, start: int, stop: int, columns: pa.Table, first: int) -> EncodedBatch:
        groups = self._group[start:stop]
        old = sorted({int(g) for g in groups if int(g) in self._old})
        held = sorted({int(g) for g in groups if int(g) in self._held})
        tables = [columns, *(self._held[g] for g in held), self._read(old)]
        place = {g: columns.num_rows + i for i, g in enumerate(held)}
        place |= {g: columns.num_rows + len(held) + i for i, g in enumerate(old)}
        rows = [place[g] if g in place else self._encoded_as[g] - first for g in groups.tolist()]
        failures = {
            start + i: self._failed[g] for i, g in enumerate(groups.tolist()) if g in self._failed
        }
        if not place and rows == list(range(rows[0], rows[0] + len(rows))):
            return EncodedBatch(start, stop, columns.slice(rows[0], len(rows)), failures)
        return EncodedBatch(start, stop, pa.concat_tables(tables).take(rows), failures)

    def _read(self, groups: Sequence[int]) -> pa.Table:
        """Read vectors from the index, in the order of the groups."""
        if not groups:
            return self._nothing
        by_part: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for number, group in enumerate(groups):
            old = self._old[group]
            by_part[old.part][old.group].append(number)
        names = self._nothing.column_names

        def read(item: tuple[str, dict[int, list[int]]]) -> tuple[list[int], list[pa.Table]]:
            part, wanted = item
            numbers, tables = [], []
            with self._store.open_input(part) as file:
                parquet = pq.ParquetFile(file)
                for row_group, members in sorted(wanted.items()):
                    table = parquet.read_row_group(row_group, columns=names).select(names)
                    table = table.take([self._old[groups[number]].row for number in members])
                    tables.append(table.cast(self._nothing.schema))
                    numbers += members
            return numbers, tables

        order: list[int] = []
        found: list[pa.Table] = []
        with ThreadPoolExecutor(min(_THREADS, len(by_part))) as pool:
            for numbers, tables in pool.map(read, by_part.items()):
                order += numbers
                found += tables
        return pa.concat_tables(found).take(np.argsort(order))


def _find_old(store: Store, hashes: pa.Array, edited: Sequence[OldRows]) -> dict[int, _Old]:
    """Map the index of each hash that occurs in these documents' old rows to such a row."""
    by_part: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for part, first, n in edited:
        by_part[part].append((first, n))

    def look(item: tuple[str, list[tuple[int, int]]]) -> dict[int, _Old]:
        part, ranges = item
        found: dict[int, _Old] = {}
        with store.open_input(part) as file:
            parquet = pq.ParquetFile(file)
            rows = [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]
            ends = np.concatenate(([0], np.cumsum(rows)))
            wanted = np.concatenate([np.arange(first, first + n) for first, n in ranges])
            group_of = np.searchsorted(ends, wanted, side="right") - 1
            for group in np.unique(group_of).tolist():
                inside = wanted[group_of == group] - ends[group]
                column = parquet.read_row_group(group, columns=["passage_hash"])["passage_hash"]
                mine = column.take(pa.array(inside)).cast(HASH)
                at = pc.index_in(mine, value_set=hashes).to_pylist()
                for number, row in zip(at, inside.tolist(), strict=True):
                    if number is not None:
                        found.setdefault(number, _Old(part, group, row))
        return found

    together: dict[int, _Old] = {}
    with ThreadPoolExecutor(min(_THREADS, len(by_part))) as pool:
        for found in pool.map(look, by_part.items()):
            together |= found
    return together
