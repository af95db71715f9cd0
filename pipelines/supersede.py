"""What a re-indexing run makes of the generation it adds to: which documents go, which stay.

A document goes when the run has it anew, or when it was nowhere to be seen: not in a unit that is
as it was, and not in one that was read. Where a unit could not be read nothing is taken for gone,
as what is in it is unknown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.commit import embedded_rows
from pipelines.duplicates import LOST_SCHEMA, read_columns
from pipelines.index import Index
from pipelines.inheritance import Inheritance
from pipelines.inventory import Numbering
from pipelines.known_documents import NOT_READ_AS, IdSet, KnownDocuments
from pipelines.records import Done
from pipelines.schemas import DELETIONS_SCHEMA, reject_table
from pipelines.source import Unit
from pipelines.storage import Store

_THREADS = 16


@dataclass(frozen=True)
class Comparison:
    """A run's view of its parent."""

    parent: Index
    before: Sequence[Unit]
    """The parent's inventory."""
    numbering: Numbering
    known: KnownDocuments

    def inherit(self, done: Sequence[Done], lost: pa.Table) -> Inheritance:
        """For the commit of the run."""
        store = self.parent.store
        embedded = embedded_rows(store, done, lost)
        replaced, moved = self._replaced(embedded)
        vanished = self._vanished(done, embedded)
        held = self.numbering.rejects(self.parent.rejects(), self.before)
        return Inheritance(
            documents=len(self.known) - replaced.num_rows - vanished.num_rows,
            rejects=pa.concat_tables([held, moved]),
            masked=pa.concat_tables([replaced, vanished]),
            lost=LOST_SCHEMA.empty_table(),
            deleted=vanished.num_rows,
            replaced=replaced.num_rows,
        )

    def _replaced(self, embedded: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Rows of old versions (DELETIONS_SCHEMA), and rejects: documents of units that are as they
        were, whose id an earlier unit has now.
        """
        found = self.known.look_up(embedded["doc_id"], embedded["doc_hash"])
        rows = np.flatnonzero(found.known)
        columns = [
            embedded["doc_id"].take(pa.array(rows)),
            pa.array([self.known.parts[part] for part in found.part[rows]], pa.string()),
            pa.array(found.first_row[rows].astype(np.int64)),
            pa.array(found.n_rows[rows].astype(np.int64)),
        ]
        shadowed = np.flatnonzero(found.known & (found.unit != NOT_READ_AS))
        ids = embedded["doc_id"].take(pa.array(shadowed)).to_pylist()
        positions = {row["doc_id"]: row["position"] for row in newest_places(self.parent, ids)}
        rejects = reject_table(
            (doc_id, int(found.unit[row]), positions[doc_id], "duplicate_id", "in another file")
            for doc_id, row in zip(ids, shadowed, strict=True)
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
            part, ranges = self.known.parts[item[0]], sorted(item[1])
            firsts, counts = (pa.array(column, pa.int64()) for column in zip(*ranges, strict=True))
            ids = read_columns(store, part, ["doc_id"])["doc_id"].take(firsts)
            parts = pa.array([part] * len(firsts), pa.string())
            return pa.table([ids, parts, firsts, counts], schema=DELETIONS_SCHEMA)

        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(describe, by_part.items()))
        return pa.concat_tables([DELETIONS_SCHEMA.empty_table(), *found])


def _kept_for_now(store: Store, path: str) -> pa.Table:
    """Those of documents that could not be embedded this time: their old versions stay."""
    rejects = read_columns(store, path, ["doc_id", "final"])
    keep = pc.and_(pc.invert(rejects["final"]), pc.is_valid(rejects["doc_id"]))
    return rejects.filter(keep)


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
