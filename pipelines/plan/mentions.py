"""Gathers the mentions of documents in an index's tables, and resolves each document's location.

A ledger mentions where a document was when it was embedded. A table of unchanged documents mentions
where a later run saw it. A deletion mentions rows that no longer count. The newest mention counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.index.parts import read_columns
from pipelines.index.reader import Index
from pipelines.plan.known import NOT_READ_AS, Bucket, IdSet, bucket_of, halves, id_hashes
from pipelines.store.store import Store

_THREADS = 16
LEDGER, UNCHANGED, DELETED = range(3)
_COLUMNS = {
    LEDGER: ["doc_id", "doc_hash", "unit", "position", "part", "first_row", "n_rows"],
    UNCHANGED: ["doc_id", "unit", "position"],
}
_MENTION = np.dtype(
    [
        *(("id", "u8"), ("check", "u8"), ("hash_a", "u8"), ("hash_b", "u8")),
        *(("part", "i4"), ("first_row", "i4"), ("n_rows", "i4"), ("unit", "i4")),
        *(("generation", "i4"), ("old_unit", "i4"), ("position", "i8"), ("kind", "i1")),
    ]
)


class Mentions:
    """Converts tables of generations to arrays of mentions, one for each bucket."""

    def __init__(self, parts: Sequence[str], buckets: int) -> None:
        """`parts`: the sorted paths of all parts; `buckets`: a power of two."""
        self._parts = pa.array(parts, pa.string())
        self._buckets = buckets

    def of(
        self, kind: int, table: pa.Table, generation: int, units: np.ndarray | None = None
    ) -> list[np.ndarray]:
        """Return the mentions in a generation's table, by bucket.

        `kind`: LEDGER, UNCHANGED or DELETED; `units`: the new number of each unit of that run, or
        NOT_READ_AS. A deletion names no unit.
        """
        rows = np.zeros(table.num_rows, _MENTION)
        rows["id"], rows["check"] = id_hashes(table["doc_id"])
        rows["generation"], rows["kind"] = generation, kind
        if kind == LEDGER:
            rows["hash_a"], rows["hash_b"] = halves(table["doc_hash"])
        if units is not None:
            rows["old_unit"] = table["unit"].to_numpy()
            rows["unit"] = _renumbered(rows["old_unit"], units)
            rows["position"] = table["position"].to_numpy()
        if kind != UNCHANGED:
            part = pc.index_in(table["part"], value_set=self._parts)
            rows["part"] = pc.fill_null(part, -1).to_numpy()
            for name in ("first_row", "n_rows"):
                rows[name] = table[name].to_numpy()
        number = bucket_of(rows["id"], self._buckets)
        return [rows[number == b] for b in range(self._buckets)]


def resolve(mentions: Iterable[np.ndarray]) -> Bucket:
    """Return one bucket's live documents, with their rows and the unit of the newest mention."""
    every = _in_order(mentions)
    last = _is_last(every)
    unit = every["unit"][last][np.cumsum(last) - last]
    live = every["kind"] == LEDGER
    every, unit = every[live], unit[live]
    names = ("hash_a", "hash_b", "part", "first_row", "n_rows")
    columns = {name: np.ascontiguousarray(every[name]) for name in names}
    ids, checks = (np.ascontiguousarray(every[name]) for name in ("id", "check"))
    return Bucket(ids, checks, unit=np.ascontiguousarray(unit), **columns)


def _in_order(mentions: Iterable[np.ndarray]) -> np.ndarray:
    """Return the mentions that count, sorted by document; the newest is last.

    Within a generation, the first in corpus order is last, because duplicates lose their id to it.
    """
    every = np.concatenate([np.zeros(0, _MENTION), *mentions])
    every = every[(every["kind"] != DELETED) & ~_dead(every)]
    place = [-every["position"], -every["old_unit"].astype(np.int64), every["generation"]]
    ordered: np.ndarray = every[np.lexsort((*place, every["check"], every["id"]))]
    return ordered


def _is_last(ordered: np.ndarray) -> np.ndarray:
    """Return bool [mentions]: whether it is the last mention of its document."""
    ids, checks = ordered["id"], ordered["check"]
    differs = (ids[1:] != ids[:-1]) | (checks[1:] != checks[:-1])
    return np.append(differs, np.ones(min(len(ordered), 1), bool))


def _dead(rows: np.ndarray) -> np.ndarray:
    """Return bool [rows]: whether it is a ledger row that a deletion names."""
    deleted = rows[rows["kind"] == DELETED]
    dead = np.zeros(len(rows), bool)
    suspects = np.flatnonzero((rows["kind"] == LEDGER) & np.isin(rows["id"], deleted["id"]))
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
    """A generation's file that mentions documents: a ledger, or a table of unchanged documents."""

    kind: int
    """LEDGER or UNCHANGED."""
    path: str
    generation: int
    units: np.ndarray = field(repr=False)
    """The new number of each unit of that run, or NOT_READ_AS."""


def mention_files(index: Index, units_of: Callable[[str], np.ndarray]) -> Iterator[MentionFile]:
    """Yield every `MentionFile` of an index; `units_of`: run id -> new numbers of its units."""
    units = cache(units_of)
    for kind, files in ((LEDGER, index.ledgers()), (UNCHANGED, index.unchanged())):
        for manifest, path in files:
            yield MentionFile(kind, path, manifest.generation, units(manifest.run_id))


def read_mentions(
    store: Store, mentions: Mentions, files: Iterable[MentionFile], only: IdSet | None = None
) -> list[list[np.ndarray]]:
    """Return the mentions in each file, by bucket; `only`: restrict them to these documents."""

    def read(file: MentionFile) -> list[np.ndarray]:
        table = read_columns(store, file.path, _COLUMNS[file.kind])
        found = mentions.of(file.kind, table, file.generation, file.units)
        return found if only is None else [rows[_find(only, rows) >= 0] for rows in found]

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(read, files))


def deletions(index: Index, mentions: Mentions) -> list[list[np.ndarray]]:
    """Return the mentions in each generation's table of deletions, by bucket."""
    return [mentions.of(DELETED, table, each.generation) for each, table in index.deletions()]


def gather(index: Index, units_of: Callable[[str], np.ndarray]) -> Bucket:
    """Read all live documents of an index into one bucket, in this process."""
    mentions = Mentions(index.part_paths, 1)
    found = read_mentions(index.store, mentions, mention_files(index, units_of))
    return resolve(rows for (rows,) in [*deletions(index, mentions), *found])


@dataclass(frozen=True)
class Place:
    """The location at which a document was last seen in the corpus."""

    run_id: str
    unit: int
    """The number of the unit in that run."""
    position: int


def newest_places(index: Index, ids: Sequence[str]) -> dict[str, Place]:
    """Return the last location of each document that is live; reads all ledgers."""
    if not ids:
        return {}
    first, check = id_hashes(pa.array(ids, pa.string()))
    order = np.argsort(first, kind="stable")
    wanted = IdSet(first[order], check[order])
    mentions, runs = Mentions(index.part_paths, 1), {m.generation: m.run_id for m in index.chain}
    files = mention_files(index, lambda run_id: np.zeros(0, np.int32))
    found = [*deletions(index, mentions), *read_mentions(index.store, mentions, files, wanted)]
    every = _in_order(rows[_find(wanted, rows) >= 0] for (rows,) in found)
    newest = every[_is_last(every)]
    at = order[_find(wanted, newest)].tolist()
    return {
        ids[i]: Place(runs[int(row["generation"])], int(row["old_unit"]), int(row["position"]))
        for i, row in zip(at, newest, strict=True)
    }


def _find(ids: IdSet, rows: np.ndarray) -> np.ndarray:
    return ids.find(*(np.ascontiguousarray(rows[name]) for name in ("id", "check")))
