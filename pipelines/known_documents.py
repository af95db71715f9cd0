"""What an index holds, for re-indexing to compare with: live documents, sorted by hashes of ids.

The rule of duplicates is here too: of documents with one id, the first in corpus order (unit, then
position) keeps it, and the others become rejects `duplicate_id`.

Arrays only, 48 bytes a document, so that they lie in shared memory once a node and are read in
place: 10 million documents take 480 MB. Larger indexes are cut into buckets by the first bits of
the hash. Two 64-bit hashes of an id stand for it: of a billion ids, the chance that any two are
taken for one is 1e-21.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.duplicates import read_columns
from pipelines.index import Index
from pipelines.schemas import RejectCode
from pipelines.storage import Store

_THREADS = 16
_COLUMNS = {
    "ledger": ["doc_id", "doc_hash", "unit", "position", "part", "first_row", "n_rows"],
    "unchanged": ["doc_id", "unit", "position"],
}
_KEYS = ("packvec document", "document, second")  # pandas wants 16 characters
NOT_READ_AS = -1
"""Sentinel unit number: this document's old location is read again or no longer exists."""

Where = Literal[
    "in the same slice", "in another slice", "in another file", "in a file that did not change"
]
"""Where the document is that keeps the id of a duplicate."""


def duplicate_of(where: Where) -> tuple[RejectCode, str]:
    """Code and detail of the reject that a duplicate becomes."""
    return "duplicate_id", where


_LEDGER, _UNCHANGED, _DELETED = range(3)
_MENTION = np.dtype(
    [
        *(("id", "u8"), ("check", "u8"), ("hash_a", "u8"), ("hash_b", "u8")),
        *(("part", "i4"), ("first_row", "i4"), ("n_rows", "i4"), ("unit", "i4")),
        *(("generation", "i4"), ("old_unit", "i4"), ("position", "i8"), ("kind", "i1")),
    ]
)


def id_hashes(ids: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Two uint64 hashes of each id (a string)."""
    values = ids.to_numpy(zero_copy_only=False) if isinstance(ids, pa.Array) else ids.to_numpy()
    values = values.astype(object)
    first, second = (pd.util.hash_array(values, hash_key=key, categorize=False) for key in _KEYS)
    return first, second


def _halves(hashes: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The two halves of each doc_hash (binary[16])."""
    if isinstance(hashes, pa.ChunkedArray):
        hashes = hashes.combine_chunks()
    data = np.frombuffer(hashes.buffers()[1], np.uint8)
    start = hashes.offset * 16
    words = data[start : start + 16 * len(hashes)].view("<u8").reshape(-1, 2)
    return words[:, 0], words[:, 1]


@dataclass(frozen=True)
class IdSet:
    """Ids by their hashes, sorted by the first."""

    ids: np.ndarray
    checks: np.ndarray

    @staticmethod
    def of(columns: Iterable[pa.ChunkedArray]) -> IdSet:
        """The ids in these columns."""
        pairs = [id_hashes(column) for column in columns]
        if not pairs:
            return IdSet(np.zeros(0, np.uint64), np.zeros(0, np.uint64))
        ids, checks = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
        order = np.argsort(ids, kind="stable")
        return IdSet(ids[order], checks[order])

    def find(self, ids: np.ndarray, checks: np.ndarray) -> np.ndarray:
        """int64: where each of these is, -1 where it is not."""
        found = np.full(len(ids), -1, np.int64)
        pending, at = np.arange(len(ids)), np.searchsorted(self.ids, ids)
        while len(pending):  # once, but where first hashes are equal by chance
            inside = at < len(self.ids)
            pending, at = pending[inside], at[inside]
            same = self.ids[at] == ids[pending]
            pending, at = pending[same], at[same]
            right = self.checks[at] == checks[pending]
            found[pending[right]] = at[right]
            pending, at = pending[~right], at[~right] + 1
        return found


@dataclass(frozen=True)
class Bucket(IdSet):
    """Live documents whose ids hash into one range; one row each."""

    hash_a: np.ndarray
    """uint64: the first half of doc_hash; `hash_b`: the second."""
    hash_b: np.ndarray
    part: np.ndarray
    """int32: which of the index's parts has its rows; with `first_row` and `n_rows`."""
    first_row: np.ndarray
    n_rows: np.ndarray
    unit: np.ndarray
    """int32: the unit it was last seen in, if that is not read again; else NOT_READ_AS."""


@dataclass(frozen=True)
class Found:
    """What is known of each of some documents; arrays are parallel to them."""

    known: np.ndarray
    """bool: the index has the id."""
    same: np.ndarray
    """bool: and with the same doc_hash."""
    unit: np.ndarray
    part: np.ndarray
    first_row: np.ndarray
    n_rows: np.ndarray


class KnownDocuments:
    """All buckets, and the names of parts."""

    def __init__(self, buckets: Sequence[Bucket], parts: Sequence[str]) -> None:
        """`buckets`: a power of two of them."""
        self.buckets, self.parts = buckets, parts

    def __len__(self) -> int:
        return sum(len(bucket.ids) for bucket in self.buckets)

    def look_up(
        self, doc_ids: pa.ChunkedArray | pa.Array, hashes: pa.ChunkedArray | pa.Array
    ) -> Found:
        """What the index has of documents: their ids, and their doc_hash now."""
        ids, checks = id_hashes(doc_ids)
        now_a, now_b = _halves(hashes)
        n = len(ids)
        known, same = np.zeros(n, bool), np.zeros(n, bool)
        places = {name: np.full(n, -1, np.int32) for name in ("unit", "part", "first_row")}
        n_rows = np.zeros(n, np.int32)
        for number, rows in _split(ids, len(self.buckets)):
            bucket = self.buckets[number]
            at = bucket.find(ids[rows], checks[rows])
            rows, at = rows[at >= 0], at[at >= 0]
            known[rows] = True
            same[rows] = (bucket.hash_a[at] == now_a[rows]) & (bucket.hash_b[at] == now_b[rows])
            for name, values in places.items():
                values[rows] = getattr(bucket, name)[at]
            n_rows[rows] = bucket.n_rows[at]
        return Found(known, same, n_rows=n_rows, **places)


def _split(ids: np.ndarray, buckets: int) -> list[tuple[int, np.ndarray]]:
    """(bucket, rows that belong to it)."""
    if buckets == 1:
        return [(0, np.arange(len(ids)))]
    number = bucket_of(ids, buckets)
    return [(int(b), np.flatnonzero(number == b)) for b in np.unique(number)]


def bucket_of(ids: np.ndarray, buckets: int) -> np.ndarray:
    """The bucket of each hash; `buckets`: a power of two."""
    bits = buckets.bit_length() - 1
    if not bits:
        return np.zeros(len(ids), np.int64)
    return (ids >> np.uint64(64 - bits)).astype(np.int64)


class Mentions:
    """What the tables of generations say of documents, gathered and then resolved.

    `parts`: the parts of all of them, sorted by what they are called.
    """

    def __init__(self, parts: Sequence[str], buckets: int) -> None:
        self._parts = pa.array(parts, pa.string())
        self._buckets = buckets

    def of_ledger(self, table: pa.Table, generation: int, units: np.ndarray) -> list[np.ndarray]:
        """By bucket. `units`: new number of each unit of that run, or NOT_READ_AS."""
        rows = self._rows(table, generation, _LEDGER)
        rows["hash_a"], rows["hash_b"] = _halves(table["doc_hash"])
        self._see(rows, table, units)
        self._place(rows, table)
        return self._by_bucket(rows)

    def of_unchanged(self, table: pa.Table, generation: int, units: np.ndarray) -> list[np.ndarray]:
        """By bucket; `units`: as for a ledger."""
        rows = self._rows(table, generation, _UNCHANGED)
        self._see(rows, table, units)
        return self._by_bucket(rows)

    def of_deletions(self, table: pa.Table, generation: int) -> list[np.ndarray]:
        """By bucket."""
        rows = self._rows(table, generation, _DELETED)
        self._place(rows, table)
        return self._by_bucket(rows)

    def _rows(self, table: pa.Table, generation: int, kind: int) -> np.ndarray:
        rows = np.zeros(table.num_rows, _MENTION)
        rows["id"], rows["check"] = id_hashes(table["doc_id"])
        rows["generation"], rows["kind"] = generation, kind
        return rows

    def _see(self, rows: np.ndarray, table: pa.Table, units: np.ndarray) -> None:
        rows["old_unit"] = table["unit"].to_numpy()
        rows["unit"] = _renumbered(rows["old_unit"], units)
        rows["position"] = table["position"].to_numpy()

    def _place(self, rows: np.ndarray, table: pa.Table) -> None:
        part = pc.index_in(table["part"], value_set=self._parts)
        rows["part"] = pc.fill_null(part, -1).to_numpy()
        for name in ("first_row", "n_rows"):
            rows[name] = table[name].to_numpy()

    def _by_bucket(self, rows: np.ndarray) -> list[np.ndarray]:
        number = bucket_of(rows["id"], self._buckets)
        return [rows[number == b] for b in range(self._buckets)]


def resolve(mentions: Iterable[np.ndarray]) -> Bucket:
    """Of everything that is said of the documents of one bucket: those that are live, and where.

    Rows that are deleted are not live. A document is where its newest live mention has it; of one
    generation's, the first in the order of the corpus, as the others lost their id to it.
    """
    every = np.concatenate([np.zeros(0, _MENTION), *mentions])
    every = every[(every["kind"] != _DELETED) & ~_dead(every)]
    place = [-every["position"], -every["old_unit"].astype(np.int64), every["generation"]]
    every = every[np.lexsort((*place, every["check"], every["id"]))]
    next_differs = (every["id"][1:] != every["id"][:-1]) | (
        every["check"][1:] != every["check"][:-1]
    )
    last = np.append(next_differs, np.ones(min(len(every), 1), bool))
    unit = every["unit"][last][np.cumsum(last) - last]
    live = every["kind"] == _LEDGER
    every, unit = every[live], unit[live]
    names = ("hash_a", "hash_b", "part", "first_row", "n_rows")
    columns = {name: np.ascontiguousarray(every[name]) for name in names}
    ids, checks = (np.ascontiguousarray(every[name]) for name in ("id", "check"))
    return Bucket(ids, checks, unit=np.ascontiguousarray(unit), **columns)


def _dead(rows: np.ndarray) -> np.ndarray:
    """Ledger rows that a deletion names."""
    deleted = rows[rows["kind"] == _DELETED]
    dead = np.zeros(len(rows), bool)
    suspects = np.flatnonzero((rows["kind"] == _LEDGER) & np.isin(rows["id"], deleted["id"]))
    names = ["id", "check", "part", "first_row"]
    gone = set(deleted[names].tolist())
    dead[suspects] = [row in gone for row in rows[suspects][names].tolist()]
    return dead


def _renumbered(units: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    if len(numbers) == 0:
        return np.full(len(units), NOT_READ_AS, np.int32)
    inside = units < len(numbers)
    return np.where(inside, numbers[np.where(inside, units, 0)], NOT_READ_AS)


@dataclass(frozen=True)
class MentionFile:
    """A file of a generation that mentions documents: a ledger, or a table of unchanged ones."""

    kind: str
    path: str
    generation: int
    units: np.ndarray = field(repr=False)
    """New number of each unit of that run, or NOT_READ_AS."""


def mention_files(index: Index, units_of: Callable[[str], np.ndarray]) -> Iterator[MentionFile]:
    """Every such file of an index; `units_of`: run id -> the new numbers of its units."""
    units: dict[str, np.ndarray] = {}
    for kind, files in (("ledger", index.ledgers()), ("unchanged", index.unchanged())):
        for manifest, path in files:
            run_id = manifest.run_id
            if run_id not in units:
                units[run_id] = units_of(run_id)
            yield MentionFile(kind, path, manifest.generation, units[run_id])


def read_mentions(
    store: Store, mentions: Mentions, files: Iterable[MentionFile]
) -> list[list[np.ndarray]]:
    """What each file mentions, by bucket."""

    def read(file: MentionFile) -> list[np.ndarray]:
        table = read_columns(store, file.path, _COLUMNS[file.kind])
        of = mentions.of_ledger if file.kind == "ledger" else mentions.of_unchanged
        return of(table, file.generation, file.units)

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(read, files))


def gather(index: Index, units_of: Callable[[str], np.ndarray]) -> Bucket:
    """All live documents of an index in one bucket, read by this process."""
    mentions = Mentions(index.part_paths, 1)
    deleted = [mentions.of_deletions(t, m.generation) for m, t in index.deletions()]
    found = read_mentions(index.store, mentions, mention_files(index, units_of))
    return resolve(rows for (rows,) in [*deleted, *found])


def newest_places(index: Index, ids: Sequence[str]) -> list[dict[str, Any]]:
    """doc_id, run_id, unit and position where each of these live documents was last seen.

    Reads all ledgers. Of one generation's rows the first counts: others lost their id to it.
    """
    if not ids:
        return []
    wanted, gone = pa.array(ids, pa.string()), set()
    for _, table in index.deletions():
        rows = table.filter(pc.is_in(table["doc_id"], wanted)).to_pylist()
        gone |= {(row["part"], row["first_row"]) for row in rows}
    newest: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {}
    for manifest, path in [*index.ledgers(), *index.unchanged()]:
        table = read_columns(index.store, path, None)
        for row in table.filter(pc.is_in(table["doc_id"], wanted)).to_pylist():
            doc_id, unit, position = row["doc_id"], row["unit"], row["position"]
            if (row.get("part"), row.get("first_row")) in gone:
                continue
            place = (manifest.generation, -unit, -position)
            if doc_id not in newest or place > newest[doc_id][0]:
                found = {"doc_id": doc_id, "unit": unit, "position": position}
                newest[doc_id] = (place, found | {"run_id": manifest.run_id})
    return [row for _, row in newest.values()]
