"""Lists the units of an index's generation, and finds those that are unchanged in the source.

A unit whose files are unchanged (path, size, etag) is not read again. The new plan carries it over
with no wanted documents and with its origins, the runs that have read it. The origins map the unit
numbers in older ledgers to those of the new plan.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import IndexStateError
from pipelines.index.records import Manifest, Plan
from pipelines.plan.known import NOT_READ_AS
from pipelines.plan.plan import load_plan, load_units
from pipelines.source.source import Source
from pipelines.source.units import Listing, SourceFile, Unit
from pipelines.store.store import Store


def plan_of(store: Store, manifest: Manifest) -> Plan:
    """Return the plan of a committed run.

    Raises:
        IndexStateError: the plan no longer exists.
    """
    plan = load_plan(store, manifest.run_id)
    if plan is None:
        raise IndexStateError(
            f"{store.uri}: expected the plan of run {manifest.run_id} (generation "
            f"{manifest.generation}), found none, so the documents it read are unknown.",
            "Start a new generation with python -m pipelines.embed_corpus ... --fresh.",
        )
    return plan


def inventory(store: Store, manifest: Manifest) -> list[Unit]:
    """Return all units of the corpus in a generation, each with its origins.

    Raises:
        FileNotFoundError: the run's units no longer exist.
    """
    run_id = manifest.run_id
    return [
        unit if unit.origins else replace(unit, origins=((run_id, unit.number),))
        for unit in load_units(store, run_id)
    ]


def read_again(units: Sequence[Unit], again: Collection[int]) -> list[Unit]:
    """Return the units of an inventory such that exactly the units in `again` are read, whole."""
    return [
        replace(unit, wanted=((0, None),), origins=())
        if unit.number in again
        else replace(unit, wanted=())
        for unit in units
    ]


def units_now(
    source: Source,
    listing: Listing,
    before: Sequence[Unit],
    again: Collection[int],
    types: Mapping[str, pa.DataType],
) -> list[Unit]:
    """Return the units of the current listing; unchanged units have no wanted documents.

    `before`: the inventory; `again`: numbers of its units to read even if unchanged; `types`: the
    types of the index's fields.

    Raises:
        SourceError: a new or changed file does not fit the index.
    """
    kept = unchanged_units(listing, before)
    rank = {file.path: number for number, file in enumerate(listing.files)}
    covered = {piece.file.path for unit in kept for piece in unit.pieces}
    new = [file for file in listing.files if file.path not in covered]
    units = read_again(kept, again)
    if new:
        units += source.units(replace(listing, files=new), types)

    def place(unit: Unit) -> tuple[int, int]:
        first = unit.pieces[0]
        return rank[first.file.path], first.start

    return [replace(unit, number=n) for n, unit in enumerate(sorted(units, key=place))]


def unchanged_units(listing: Listing, before: Sequence[Unit]) -> list[Unit]:
    """Return the units whose files are all unchanged and not shared with a changed unit."""
    now = {file.path: file for file in listing.files}
    broken: set[SourceFile] = set()
    usable = [
        unit.format == listing.format and all(now.get(p.file.path) == p.file for p in unit.pieces)
        for unit in before
    ]
    for unit, good in zip(before, usable, strict=True):
        if not good:
            broken |= {piece.file for piece in unit.pieces}
    return [
        unit
        for unit, good in zip(before, usable, strict=True)
        if good and not any(piece.file in broken for piece in unit.pieces)
    ]


@dataclass(frozen=True)
class Numbering:
    """Mapping from the unit numbers of earlier runs to those of the new plan."""

    units: Sequence[Unit]
    """The units of the new plan; those with origins are carried over."""

    def of_run(self, run_id: str) -> np.ndarray:
        """Return int32 [units of that run]: the new number, or NOT_READ_AS if not carried over."""
        pairs = [(n, u.number) for u in self.units for run, n in u.origins if run == run_id]
        numbers = np.full(max((n for n, _ in pairs), default=-1) + 1, NOT_READ_AS, np.int32)
        for old, new in pairs:
            numbers[old] = new
        return numbers

    def rejects(self, table: pa.Table, before: Sequence[Unit]) -> pa.Table:
        """Return the rejects of carried-over units, renumbered; `before`: the inventory."""
        now = {unit.origins: unit.number for unit in self.units if unit.origins}
        numbers = {unit.number: now[unit.origins] for unit in before if unit.origins in now}
        old = table["unit"].to_numpy()
        keep = np.isin(old, list(numbers))
        new = pa.array([numbers[int(unit)] for unit in old[keep]], pa.int32())
        kept = table.filter(pa.array(keep))
        return kept.set_column(kept.schema.get_field_index("unit"), "unit", new)


def for_now(rejects: pa.Table) -> set[int]:
    """Return the units that have rejects to try again (not `final`)."""
    return set(rejects.filter(pc.invert(rejects["final"]))["unit"].to_pylist())
