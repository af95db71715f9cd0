"""Embedding again what was rejected for now: a run over parts of the units of an earlier one.

Its generation adds to the one it replays: it holds the documents that could be embedded this time,
and takes over the rejects that are final.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.duplicates import LOST_SCHEMA
from pipelines.index import Index
from pipelines.inheritance import Inheritance
from pipelines.plan import load_units
from pipelines.records import DELETIONS_SCHEMA, Manifest, reject_table
from pipelines.source import Unit
from pipelines.storage import Store


def units_to_replay(store: Store, live: Manifest, rejects: pa.Table) -> list[Unit]:
    """The units that have rejects for now, wanting no more than those documents.

    What could not be read is wanted from where reading stopped to the end of its unit.
    """
    wanted: dict[int, list[tuple[int, int | None]]] = defaultdict(list)
    again = rejects.filter(pc.invert(rejects["final"]))
    again = again.sort_by([("unit", "ascending"), ("position", "ascending")])
    names = ("unit", "position", "code")
    for unit, position, code in zip(*(again[name].to_pylist() for name in names), strict=True):
        stop = None if code == "unreadable_unit" else position + 1
        ranges = wanted[unit]
        if ranges and ranges[-1][1] == position:
            ranges[-1] = (ranges[-1][0], stop)
        else:
            ranges.append((position, stop))
    return [
        replace(unit, wanted=tuple(wanted[unit.number]))
        for unit in load_units(store, live.run_id)
        if unit.number in wanted
    ]


def inherit(parent: Index, embedded: pa.Table) -> Inheritance:
    """`embedded`: ledger rows of this run; of equal ids the lowest (unit, position) stays."""
    ids = embedded["doc_id"].combine_chunks()
    before = parent.documents(ids)
    old, new = _places(before), _places(embedded)
    replaced = [new[doc_id] < place for doc_id, place in old.items()]
    lost = [doc_id in old and old[doc_id] < new[doc_id] for doc_id in new]
    rejects = parent.rejects()
    counts = parent.info.counts
    gone = before.filter(pa.array(replaced, pa.bool_()))
    names = ("doc_id", "unit", "position")
    doubles = zip(*(gone[name].to_pylist() for name in names), strict=True)
    return Inheritance(
        documents=counts.documents + counts.unchanged - gone.num_rows,
        rejects=pa.concat_tables(
            [
                reject_table((*row, "duplicate_id", "in another slice") for row in doubles),
                rejects.filter(rejects["final"]),
            ]
        ),
        masked=gone.select(DELETIONS_SCHEMA.names).cast(DELETIONS_SCHEMA),
        lost=embedded.filter(pa.array(lost, pa.bool_())).select(LOST_SCHEMA.names),
        deleted=gone.num_rows,
    )


def _places(ledger: pa.Table) -> dict[str, tuple[int, int]]:
    names = ("doc_id", "unit", "position")
    rows: Iterable[tuple[str, int, int]]
    rows = zip(*(ledger[name].to_pylist() for name in names), strict=True)
    return {doc_id: (unit, position) for doc_id, unit, position in rows}
