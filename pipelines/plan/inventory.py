"""Which units an index's generation consists of, and which of them tonight's source still has.

A unit whose files are as they were (path, size, etag) is not read again. It is carried over into
the new plan with nothing wanted of it, and with its origins: the runs that have read it, so that
ledgers of any age say which of today's units a document is in.
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
    """The plan of a committed run.

    Raises:
        IndexStateError: it is gone.
    """
    plan = load_plan(store, manifest.run_id)
    if plan is None:
        raise IndexStateError(
            f"{store.uri}: expected the plan of run {manifest.run_id} (generation "
            f"{manifest.generation}), found none: what it read cannot be told.",
            "Start over beside it with python -m pipelines.embed_corpus ... --fresh.",
        )
    return plan


def inventory(store: Store, manifest: Manifest) -> list[Unit]:
    """All units of the corpus as a generation has it, each with its origins.

    Raises:
        FileNotFoundError: the run's units are gone.
    """
    run_id = manifest.run_id
    return [
        unit if unit.origins else replace(unit, origins=((run_id, unit.number),))
        for unit in load_units(store, run_id)
    ]


def read_again(units: Sequence[Unit], again: Collection[int]) -> list[Unit]:
    """The units of an inventory, of which the numbered ones are wanted whole, and nothing else."""
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
    """The units of the source as it is listed now; nothing is wanted of those that are as before.

    `before`: the inventory; `again`: numbers of its units that are to be read all the same;
    `types`: of the fields that the index has.

    Raises:
        SourceError: a new or changed file is not as the index needs it.
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
    """Units of which every file is listed as it was, and every other unit of these files too."""
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
    """From the numbers that units had in earlier runs to those they have now."""

    units: Sequence[Unit]
    """Of the plan that is made: those with origins are carried over."""

    def of_run(self, run_id: str) -> np.ndarray:
        """int32, by the number in that run; NOT_READ_AS where it is read again, or gone."""
        pairs = [(n, u.number) for u in self.units for run, n in u.origins if run == run_id]
        numbers = np.full(max((n for n, _ in pairs), default=-1) + 1, NOT_READ_AS, np.int32)
        for old, new in pairs:
            numbers[old] = new
        return numbers

    def rejects(self, table: pa.Table, before: Sequence[Unit]) -> pa.Table:
        """The rejects of units that are carried over, renumbered; `before`: the inventory."""
        now = {unit.origins: unit.number for unit in self.units if unit.origins}
        numbers = {unit.number: now[unit.origins] for unit in before if unit.origins in now}
        old = table["unit"].to_numpy()
        keep = np.isin(old, list(numbers))
        new = pa.array([numbers[int(unit)] for unit in old[keep]], pa.int32())
        kept = table.filter(pa.array(keep))
        return kept.set_column(kept.schema.get_field_index("unit"), "unit", new)


def for_now(rejects: pa.Table) -> set[int]:
    """Units with rejects that are tried again."""
    return set(rejects.filter(pc.invert(rejects["final"]))["unit"].to_pylist())
