"""Copies the live rows of old parts into new parts, and writes their ledger.

Rows are copied one row group at a time, so memory does not depend on the size of parts. They keep
their order, so the rows of a document stay contiguous. Vectors are copied without decoding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors.errors import IndexStateError
from pipelines.index.layout import new_nonce, rows_path
from pipelines.index.parts import PartWriter, checked_file, describe_file, read_columns, write_table
from pipelines.index.records import FileRecord
from pipelines.index.schemas import LEDGER_SCHEMA
from pipelines.maintain.audit import Generation, columns_of
from pipelines.maintain.compaction import OldPart
from pipelines.plan.inventory import Numbering
from pipelines.plan.known import NOT_READ_AS, IdSet, id_hashes
from pipelines.source.units import Unit
from pipelines.store.files import scratch_folder
from pipelines.store.store import Store

_THREADS = 16
_SEEN = np.dtype(
    [
        *(("id", "u8"), ("check", "u8"), ("position", "i8")),
        *(("generation", "i4"), ("unit", "i4")),
    ]
)


class CurrentPlaces:
    """The current place of each live document in the corpus, as the newest run found it.

    It needs 32 bytes of memory for each document that a run found unchanged.
    """

    def __init__(self, store: Store, chain: Sequence[Generation], units: Sequence[Unit]) -> None:
        """`units`: the inventory of the chain."""
        numbering = Numbering(units)
        self._nowhere = max((unit.number for unit in units), default=-1) + 1
        self._numbers = {g.number: numbering.of_run(g.manifest.run_id) for g in chain}
        jobs = [(g.number, file.path) for g in chain for file in g.unchanged or []]
        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(lambda job: _read(store, *job), jobs))
        every = np.concatenate([np.zeros(0, _SEEN), *found])
        # The newest run first. Within a run the lowest place, whose document kept the id.
        keys = (every["position"], every["unit"], -every["generation"].astype(np.int64))
        every = every[np.lexsort((*keys, every["check"], every["id"]))]
        again = (every["id"][1:] == every["id"][:-1]) & (every["check"][1:] == every["check"][:-1])
        self._seen = every[~np.append([False] * bool(len(every)), again).astype(bool)]
        self._ids = IdSet(*(np.ascontiguousarray(self._seen[name]) for name in ("id", "check")))

    def of(self, ledger: pa.Table, generation: int) -> pa.Table:
        """Return live rows of a generation's ledger with current unit and position.

        A document whose last place is no longer in the inventory gets a unit number beyond all
        units, so that the next re-indexing run again finds it in no unchanged unit.
        """
        at = self._ids.find(*id_hashes(ledger["doc_id"]))
        newer = np.flatnonzero(at >= 0)
        newer = newer[self._seen["generation"][at[newer]] > generation]
        position = ledger["position"].to_numpy().copy()
        unit = self._today(ledger["unit"].to_numpy(), generation)
        seen = self._seen[at[newer]]
        position[newer] = seen["position"]
        for number in np.unique(seen["generation"]):
            rows = seen["generation"] == number
            unit[newer[rows]] = self._today(seen["unit"][rows], int(number))
        for name, values in (("unit", unit), ("position", position)):
            ledger = ledger.set_column(
                ledger.column_names.index(name), ledger.schema.field(name), pa.array(values)
            )
        return ledger

    def _today(self, units: np.ndarray, generation: int) -> np.ndarray:
        """Return the current numbers of units of a generation's run."""
        numbers = np.append(self._numbers[generation], NOT_READ_AS)  # for units beyond the last
        found = numbers[np.minimum(units, len(numbers) - 1)]
        return np.where(found == NOT_READ_AS, self._nowhere, found).astype(np.int32)


def _read(store: Store, generation: int, path: str) -> np.ndarray:
    table = read_columns(store, path, ["doc_id", "unit", "position"])
    rows = np.zeros(table.num_rows, _SEEN)
    rows["id"], rows["check"] = id_hashes(table["doc_id"])
    rows["generation"] = generation
    for name in ("unit", "position"):
        rows[name] = table[name].to_numpy()
    return rows


@dataclass(frozen=True)
class NewPart:
    """A kept or rewritten part of the new generation, and its ledger."""

    part: FileRecord
    ledger: FileRecord | None
    """The ledger file; None if the part has no document."""
    documents: int
    tokens: int
    truncated: int


@dataclass(frozen=True)
class PartRewriter:
    """A thread-safe maker of the parts of a compaction run."""

    store: Store
    run_id: str
    places: CurrentPlaces
    ledgers: Mapping[str, Sequence[str]]
    """Part -> ledger files with rows of the part, from `ledgers_by_part`."""
    nonce: str = field(default_factory=new_nonce)

    def keep(self, number: int, old: OldPart) -> NewPart:
        """Keep a part, and rewrite its ledger with current places."""
        flags = read_columns(self.store, old.path, ["truncated"])["truncated"]
        ledger = self._ledger(old, old.path, 0)
        return self._described(number, old.file, [ledger], pc.sum(flags).as_py() or 0)

    def rewrite(self, number: int, olds: Sequence[OldPart]) -> NewPart:
        """Write the live rows of old parts to one new part.

        Raises:
            StorageError: an old part has other bytes than were committed.
            IndexStateError: the ledger of an old part does not match its live rows.
        """
        path = rows_path("data", self.run_id, number, 0, self.nonce)
        ledgers, truncated = [], 0
        with scratch_folder() as scratch, ExitStack() as stack:
            local = scratch / "part.parquet"
            writer: PartWriter | None = None
            for old in olds:
                with checked_file(self.store, old.file) as source, pq.ParquetFile(source) as file:
                    if writer is None:
                        schema = file.schema_arrow.remove_metadata()
                        writer = stack.enter_context(PartWriter(local, schema))
                    self._check(old, file, schema)
                    ledgers.append(self._ledger(old, path, writer.rows))
                    for rows in _live_rows(file, old.live_mask()):
                        truncated += pc.sum(rows["truncated"]).as_py() or 0
                        writer.write(rows.replace_schema_metadata())
            stack.close()
            assert writer is not None, "a new part needs at least one old part"
            record = describe_file(local, path, writer.rows)
            self.store.upload(local, path)
        return self._described(number, record, ledgers, truncated)

    def _check(self, old: OldPart, file: pq.ParquetFile, schema: pa.Schema) -> None:
        url = self.store.url(old.path)
        if file.metadata.num_rows != old.rows:
            found = f"{file.metadata.num_rows:,}"
            raise IndexStateError(f"{url}: expected {old.rows:,} rows, found {found}.")
        if not file.schema_arrow.remove_metadata().equals(schema):
            raise IndexStateError(
                f"{url}: expected columns {columns_of(schema)}, as in the parts before it, found "
                f"{columns_of(file.schema_arrow)}."
            )

    def _ledger(self, old: OldPart, path: str, first_row: int) -> pa.Table:
        """Return the ledger of a part's live rows, stored in `path` from `first_row` on."""
        rows, live = ledger_of(self.store, old.path, self.ledgers), old.live_mask()
        firsts = rows["first_row"].to_numpy()
        alive = np.flatnonzero((firsts >= 0) & (firsts < old.rows))
        alive = alive[live[firsts[alive]]]
        rows = rows.take(pa.array(alive[np.argsort(firsts[alive])]))
        firsts, counts = (rows[name].to_numpy() for name in ("first_row", "n_rows"))
        owned = np.arange(counts.sum()) + np.repeat(firsts - (np.cumsum(counts) - counts), counts)
        if not np.array_equal(owned, np.flatnonzero(live)):
            raise IndexStateError(
                f"{self.store.url(old.path)}: expected a document of the ledger for each of "
                f"its {int(live.sum()):,} live rows, found {len(owned):,} rows of documents.",
                "Nothing was changed. python -m pipelines.verify_index --deep shows the problems.",
            )
        rows = self.places.of(rows, old.generation)
        placed = {
            "part": pa.array([path] * rows.num_rows, pa.string()),
            "first_row": pa.array(first_row + np.cumsum(counts, dtype=np.int64) - counts),
        }
        for name, values in placed.items():
            rows = rows.set_column(LEDGER_SCHEMA.get_field_index(name), name, values)
        return rows.cast(LEDGER_SCHEMA)

    def _described(
        self, number: int, part: FileRecord, ledgers: Sequence[pa.Table], truncated: int
    ) -> NewPart:
        ledger = pa.concat_tables(ledgers)
        path = rows_path("documents", self.run_id, number, 0, self.nonce)
        file = write_table(self.store, ledger, path) if ledger.num_rows else None
        tokens = pc.sum(ledger["n_tokens"]).as_py() or 0
        return NewPart(part, file, ledger.num_rows, tokens, truncated)


def ledgers_by_part(store: Store, chain: Sequence[Generation]) -> dict[str, list[str]]:
    """Return part -> the ledger files of a chain that have rows of the part."""
    paths = [file.path for generation in chain for file in generation.documents or []]
    with ThreadPoolExecutor(_THREADS) as pool:
        named = pool.map(lambda path: read_columns(store, path, ["part"])["part"].unique(), paths)
        found: dict[str, list[str]] = defaultdict(list)
        for path, parts in zip(paths, named, strict=True):
            for part in parts.to_pylist():
                found[part].append(path)
    return found


def ledger_of(store: Store, part: str, ledgers: Mapping[str, Sequence[str]]) -> pa.Table:
    """Read the ledger rows of a part; `ledgers` comes from `ledgers_by_part`."""
    files = [read_columns(store, path) for path in ledgers.get(part, ())]
    rows = pa.concat_tables([LEDGER_SCHEMA.empty_table(), *files])
    return rows.filter(pc.equal(rows["part"], part))


def _live_rows(file: pq.ParquetFile, live: np.ndarray) -> Iterator[pa.Table]:
    """Yield the live rows of each row group; groups without live rows are not read."""
    start = 0
    for group in range(file.num_row_groups):
        stop = start + file.metadata.row_group(group).num_rows
        keep = live[start:stop]
        if keep.any():
            rows = file.read_row_group(group)
            yield rows if keep.all() else rows.filter(pa.array(keep))
        start = stop
