"""Compares a re-indexing run with its parent generation: which documents are deleted, which stay.

A document of the parent is deleted if this run wrote a newer version of it, or if it appears
neither in an unchanged unit nor in one that this run read. Where a unit could not be read, no
document counts as vanished, because the unit's content is unknown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.index.parts import read_columns
from pipelines.index.reader import Index
from pipelines.index.records import Done
from pipelines.index.schemas import DELETIONS_SCHEMA, LEDGER_SCHEMA, REJECTS_SCHEMA, reject_table
from pipelines.plan.inventory import Numbering
from pipelines.plan.known import NOT_READ_AS, IdSet, KnownDocuments, duplicate_of
from pipelines.plan.mentions import newest_places
from pipelines.source.units import Unit
from pipelines.store.store import Store

_THREADS = 16


@dataclass(frozen=True)
class Inheritance:
    """The documents, rejects and deletions that follow from the parent of a generation."""

    documents: int
    """Documents of the parent and its ancestors that stay live."""
    rejects: pa.Table
    """REJECTS_SCHEMA: rejects of the parent that still hold, and documents of the parent that lose
    their id to a document of this run."""
    masked: pa.Table
    """DELETIONS_SCHEMA: rows of the parent that are deleted."""
    deleted: int = 0
    """Documents of the parent that are deleted."""
    replaced: int = 0
    """Documents of the parent that this run wrote a newer version of."""


NOTHING = Inheritance(0, REJECTS_SCHEMA.empty_table(), DELETIONS_SCHEMA.empty_table())


@dataclass(frozen=True)
class Comparison:
    """A run and its parent generation."""

    parent: Index
    before: Sequence[Unit]
    """The inventory of the parent."""
    numbering: Numbering
    known: KnownDocuments

    def inherit(self, done: Sequence[Done], lost: pa.Table) -> Inheritance:
        """Compare the run with its parent, for the commit.

        `lost`: documents of the run with an id that occurs earlier in the run (LOST_SCHEMA).
        """
        store, keys = self.parent.store, ["unit", "position"]
        ledgers = [read_columns(store, r.ledger.path, None) for r in done if r.ledger]
        every = pa.concat_tables([LEDGER_SCHEMA.empty_table(), *ledgers])
        embedded = every.join(lost.select(keys), keys, join_type="left anti")
        replaced, moved = self._replaced(embedded)
        vanished = self._vanished(done, embedded)
        held = self.numbering.rejects(self.parent.rejects(), self.before)
        return Inheritance(
            documents=len(self.known) - replaced.num_rows - vanished.num_rows,
            rejects=pa.concat_tables([held, moved]),
            masked=pa.concat_tables([replaced, vanished]),
            deleted=vanished.num_rows,
            replaced=replaced.num_rows,
        )

    def _replaced(self, embedded: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Return rows of old versions (DELETIONS_SCHEMA), and rejects for documents of unchanged
        units whose id an earlier unit now holds."""
        found = self.known.look_up(embedded["doc_id"], embedded["doc_hash"])
        rows = np.flatnonzero(found.known)
        columns = [
            embedded["doc_id"].take(pa.array(rows)),
            [self.known.parts[part] for part in found.part[rows]],
            found.first_row[rows],
            found.n_rows[rows],
        ]
        shadowed = np.flatnonzero(found.known & (found.unit != NOT_READ_AS))
        ids = embedded["doc_id"].take(pa.array(shadowed)).to_pylist()
        places = newest_places(self.parent, ids)
        rejects = reject_table(
            (doc_id, unit, places[doc_id].position, *duplicate_of("in another file"))
            for doc_id, unit in zip(ids, found.unit[shadowed].tolist(), strict=True)
        )
        return pa.table(columns, schema=DELETIONS_SCHEMA), rejects

    def _vanished(self, done: Sequence[Done], embedded: pa.Table) -> pa.Table:
        if any(record.unreadable for record in done):
            return DELETIONS_SCHEMA.empty_table()
        store = self.parent.store
        paths = [r.unchanged_file.path for r in done if r.unchanged_file]
        rejects = [r.reject_file.path for r in done if r.reject_file]
        with ThreadPoolExecutor(_THREADS) as pool:
            unchanged = list(pool.map(lambda p: read_columns(store, p, ["doc_id"]), paths))
            again = list(pool.map(lambda p: _kept_for_now(store, p), rejects))
        seen = IdSet.of(table["doc_id"] for table in (embedded, *unchanged, *again))
        by_part: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for bucket in self.known.buckets:
            rows = np.flatnonzero(bucket.unit == NOT_READ_AS)
            rows = rows[seen.find(bucket.ids[rows], bucket.checks[rows]) < 0]
            places = (getattr(bucket, name)[rows] for name in ("part", "first_row", "n_rows"))
            for part, first, n in zip(*places, strict=True):
                by_part[int(part)].append((int(first), int(n)))

        def describe(item: tuple[int, list[tuple[int, int]]]) -> pa.Table:
            part = self.known.parts[item[0]]
            firsts, counts = zip(*sorted(item[1]), strict=True)
            ids = read_columns(store, part, ["doc_id"])["doc_id"].take(pa.array(firsts))
            return pa.table([ids, [part] * len(ids), firsts, counts], schema=DELETIONS_SCHEMA)

        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(describe, by_part.items()))
        return pa.concat_tables([DELETIONS_SCHEMA.empty_table(), *found])


def _kept_for_now(store: Store, path: str) -> pa.Table:
    """Read the rejects that later runs retry; old versions of their documents stay live."""
    rejects = read_columns(store, path, ["doc_id", "final"])
    keep = pc.and_(pc.invert(rejects["final"]), pc.is_valid(rejects["doc_id"]))
    return rejects.filter(keep)
