"""Pins what a run reads before it starts (plan and units), and computes what is left to do."""

from __future__ import annotations

import gzip
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.errors import SourceChangedError
from pipelines.config.run import AnyRunConfig
from pipelines.index.layout import (
    digest_path,
    digests_folder,
    done_folder,
    done_path,
    done_prefix,
    new_nonce,
    plan_path,
    units_path,
    unreadable_path,
)
from pipelines.index.records import Done, Plan, RunKind
from pipelines.index.schemas import UNITS_SCHEMA
from pipelines.plan.request import Request
from pipelines.source.units import FileRange, SourceFile, Unit, total
from pipelines.store.store import Store

TODO_SCHEMA = UNITS_SCHEMA.append(pa.field("todo", pa.list_(pa.list_(pa.int64()))))


_FILE_FIELDS = ("path", "size", "etag")
_PIECE_FIELDS = ("name", "start", "stop", "row_group", "documents")


@dataclass(frozen=True)
class PlannedRun:
    """A pinned plan with its units."""

    plan: Plan
    units: list[Unit]


def load_plan(store: Store, run_id: str) -> Plan | None:
    """Return a run's plan, None if it does not exist."""
    try:
        return Plan.model_validate_json(store.read(plan_path(run_id)))
    except FileNotFoundError:
        return None


def plan_run(
    store: Store,
    config: AnyRunConfig,
    request: Request,
    pin: Callable[[], tuple[Sequence[Unit], str]],
    files: Sequence[SourceFile],
    run_id: str,
    parent: int | None = None,
    kind: RunKind = "embed",
) -> PlannedRun:
    """Pin what the run reads, or return the plan that an earlier attempt pinned.

    `pin`: returns the units and the hash of their listing; `files`: the current files.

    Raises:
        SourceChangedError: a file of the earlier plan was changed or deleted.
    """
    if not store.exists(units_path(run_id)):
        store.create_exclusive(units_path(run_id), units_to_bytes(*pin()))
    units, listing = _read_units(store, run_id)
    _check_unchanged(units, files)
    plan = load_plan(store, run_id)
    if plan is None:
        plan = Plan(
            run_id=run_id,
            kind=kind,
            parent=parent,
            request=request.parts,
            listing=listing,
            units=len(units),
            documents=total(unit.documents_wanted for unit in units),
            config=config.resolved(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        store.create_exclusive(plan_path(run_id), plan.to_bytes())
    return PlannedRun(plan, units)


def load_units(store: Store, run_id: str) -> list[Unit]:
    """Return the units that a run pinned."""
    return _read_units(store, run_id)[0]


def todo_table(units: Iterable[Unit], done: Iterable[Done]) -> pa.Table:
    """Return a row for each incomplete unit: the unit, and the document ranges to read.

    A range that ends with null goes to the end of the unit. Unreadable documents are read again.
    """
    by_unit: dict[int, list[Done]] = defaultdict(list)
    for record in done:
        if not record.unreadable:
            by_unit[record.unit].append(record)
    rows = [
        _unit_row(unit) | {"todo": ranges}
        for unit in units
        if (ranges := _missing_ranges(unit, by_unit[unit.number]))
    ]
    return pa.Table.from_pylist(rows, TODO_SCHEMA)


def _missing_ranges(unit: Unit, done: Sequence[Done]) -> list[tuple[int, int | None]]:
    """Return the wanted ranges of documents that have no done record."""
    ranges: list[tuple[int, int | None]] = []
    for start, stop in unit.wanted:
        position, at_end = start, False
        for record in done:
            if record.first_document < start or (stop and record.first_document >= stop):
                continue
            if record.first_document > position:
                ranges.append((position, record.first_document))
            position, at_end = record.next_document, record.last
        if not at_end if stop is None else position < stop:
            ranges.append((position, stop))
    return ranges


def incomplete_units(units: Iterable[Unit], done: Iterable[Done]) -> list[int]:
    """Return the units whose done records do not cover every wanted document."""
    complete = [record.model_copy(update={"unreadable": False}) for record in done]
    return todo_table(units, complete)["unit"].to_pylist()  # type: ignore[no-any-return]


def _check_unchanged(units: Sequence[Unit], files: Sequence[SourceFile]) -> None:
    now = {file.path: file for file in files}
    for file in {piece.file for unit in units for piece in unit.pieces}:
        if now.get(file.path) != file:
            state = "changed" if file.path in now else "is gone"
            raise SourceChangedError(
                f"{file.path} {state} since this run was planned; a run needs unchanged files.",
                "Restore the file, or start over with --fresh. Re-indexing: run it again.",
            )


def _unit_row(unit: Unit) -> dict[str, Any]:
    return {
        "unit": unit.number,
        "format": unit.format,
        "documents": unit.documents,
        "wanted": unit.wanted,
        "origins": [{"run_id": run, "unit": n} for run, n in unit.origins],
        "pieces": [_piece_row(piece) for piece in unit.pieces],
    }


def _piece_row(piece: FileRange) -> dict[str, Any]:
    row = {name: getattr(piece, name) for name in _PIECE_FIELDS}
    return row | {name: getattr(piece.file, name) for name in _FILE_FIELDS}


def units_to_bytes(units: Sequence[Unit], listing: str) -> bytes:
    """Serialise units for `load_units`; `listing`: the hash of the listing they come from."""
    table = pa.Table.from_pylist([_unit_row(unit) for unit in units], UNITS_SCHEMA)
    # Stored with the units: a plan that is made after a crash must not use a newer listing.
    table = table.replace_schema_metadata({"listing": listing})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _read_units(store: Store, run_id: str) -> tuple[list[Unit], str]:
    table = pq.read_table(pa.BufferReader(store.read(units_path(run_id))))
    return [unit_of(row) for row in table.to_pylist()], table.schema.metadata[b"listing"].decode()


def unit_of(row: Mapping[str, Any]) -> Unit:
    """Convert a row of units.parquet to a unit."""
    pieces = (
        FileRange(
            file=SourceFile(*(piece[name] for name in _FILE_FIELDS)),
            **{name: piece[name] for name in _PIECE_FIELDS},
        )
        for piece in row["pieces"]
    )
    wanted = tuple((start, stop) for start, stop in row["wanted"])
    # Indexes written before re-indexing was added do not have this column.
    origins = tuple((origin["run_id"], origin["unit"]) for origin in row.get("origins") or ())
    return Unit(row["unit"], row["format"], tuple(pieces), row["documents"], wanted, origins)


DIGEST_RECORDS = 500


class DoneRecords:
    """The done records of one run, kept by its driver."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.store, self._run_id = store, run_id
        self._known: dict[str, Done] = {}
        self._has_digests = False
        self._loose: list[Done] = []
        """Known records that are not in a digest yet."""

    def read(self) -> list[Done]:
        """Return all records by unit and first document; known records are not read again.

        A record of an unreadable unit is included only if no other record lies beyond it.
        """
        if not self._has_digests:
            self._known |= {self._path(done): done for done in self._read_digests()}
            self._has_digests = True
        paths = self.store.list(done_folder(self._run_id))
        new = [path for path in paths if path not in self._known]
        for content in self.store.read_many(new):
            self.add(Done.model_validate_json(content))
        return in_order(self._known[path] for path in paths)

    def add(self, done: Done) -> None:
        """Add a record that an actor has written."""
        path = self._path(done)
        if path not in self._known:
            self._known[path] = done
            self._loose.append(done)
            if len(self._loose) >= DIGEST_RECORDS:
                self._write_digest()

    def _path(self, done: Done) -> str:
        path = unreadable_path if done.unreadable else done_path
        return path(self._run_id, done.unit, done.first_document)

    def _read_digests(self) -> Iterable[Done]:
        for content in self.store.read_many(self.store.list(digests_folder(self._run_id))):
            yield from map(Done.model_validate_json, gzip.decompress(content).splitlines())

    def _write_digest(self) -> None:
        lines = "\n".join(done.model_dump_json() for done in self._loose)
        path = digest_path(self._run_id, new_nonce())
        self.store.overwrite(path, gzip.compress(lines.encode()))
        self._loose = []


def read_done(store: Store, run_id: str, unit: int | None = None) -> list[Done]:
    """Return what `DoneRecords.read` returns, of a run or one unit; write no digests."""
    paths = store.list(done_folder(run_id))
    if unit is not None:
        paths = [path for path in paths if path.startswith(done_prefix(run_id, unit))]
    return in_order(map(Done.model_validate_json, store.read_many(paths)))


def in_order(records: Iterable[Done]) -> list[Done]:
    """Sort records by unit and first document; drop `unreadable` ones that later ones supersede."""
    # If two records begin at the same document, the readable one counts.
    found = sorted(records, key=lambda done: (done.unit, done.first_document, not done.unreadable))
    return [
        record
        for record, after in zip_longest(found, found[1:])
        if not record.unreadable or after is None or after.unit != record.unit
    ]
