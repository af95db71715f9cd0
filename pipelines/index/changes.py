"""What changed between two generations: for whoever keeps a copy of an index, such as a store.

    changes = open_index("s3://vectors/wiki").changes(since=12)
    changes.deleted              # doc_id, passage_id
    changes.upserts()            # rows of new and changed documents

Where the newer generation comes from the older one, the ledgers and deletions of those in between
say it, and nothing else is read. Else, as after a roll back, the two ledgers are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import IndexStateError
from pipelines.index.generations import committed_generations, publications, read_manifest
from pipelines.index.layout import manifest_path
from pipelines.index.records import Manifest
from pipelines.index.schemas import DELETIONS_SCHEMA, LEDGER_SCHEMA
from pipelines.index.view import View

DELETED_SCHEMA = pa.schema([("doc_id", pa.string()), ("passage_id", pa.string())])
_TOUCHED_SCHEMA = pa.schema([("doc_id", pa.string()), ("was", pa.int64()), ("now", pa.int64())])
"""Of a document its rows in the older and in the newer view; 0: it is not in it."""

_BATCH_ROWS = 4096


@dataclass(frozen=True)
class Changes:
    """What makes of the rows of generation `since` those of `index`.

    Iterating gives what to delete, then what to upsert (all columns), batch by batch.
    """

    index: View
    since: int
    deleted: pa.Table
    """DELETED_SCHEMA: passages that are not there any more."""
    documents: pa.Table
    """LEDGER_SCHEMA: the new and the changed documents. Every passage of these is upserted, also
    where only metadata was edited."""

    def upserts(self, columns: Sequence[str] | None = None) -> pa.RecordBatchReader:
        """Rows of `documents`, read as they are asked for.

        Raises:
            IndexStateError: no such column.
        """
        return self.index.rows_of(self.documents, columns)

    def __iter__(self) -> Iterator[tuple[Literal["delete", "upsert"], pa.RecordBatch]]:
        for batch in self.deleted.to_batches(_BATCH_ROWS):
            yield "delete", batch
        for batch in self.upserts():
            yield "upsert", batch


def changes_since(index: View, since: int) -> Changes:
    """The changes from generation `since` of the same store to what `index` reads.

    Raises:
        IndexStateError: there is no such generation, or not any more.
    """
    added = _generations_after(index, since)
    found = None if added is None else _said_by(index, added)
    if found is None:
        found = _compared(_open(since, index), index)
    touched, documents = found
    return Changes(index, since, _deleted(touched), documents)


def _generations_after(index: View, since: int) -> list[Manifest] | None:
    """What was added to `since` to make the generation of `index`, the newest first.

    None: that is not how it was made, or what would tell is gone. Generations that only rewrite
    are left out: their view is that of the one they rewrote.
    """
    store, known = index.store, {manifest.generation: manifest for manifest in index.chain}

    def read(number: int) -> Manifest | None:
        if number in known or store.exists(manifest_path(number)):
            return known.get(number) or read_manifest(store, number)
        return None

    def rewritten_by(manifest: Manifest | None) -> int | None:
        """The generation that this one rewrites; None: none, or it stores the rows otherwise."""
        if manifest is None or manifest.compacts is None:
            return None
        source = read(manifest.compacts)
        same_columns = not source or source.index_fingerprint == manifest.index_fingerprint
        return manifest.compacts if same_columns else None

    same: set[int] = set()
    number: int | None = since
    while number is not None:
        same.add(number)
        number = rewritten_by(read(number))
    added: list[Manifest] = []
    number = index.info.generation
    while number is not None and number not in same:
        manifest = read(number)
        if manifest and manifest.parent is not None:
            added.append(manifest)
            number = manifest.parent
        else:
            number = rewritten_by(manifest)
    return None if number is None else added


def _said_by(index: View, added: list[Manifest]) -> tuple[pa.Table, pa.Table] | None:
    """Touched documents (_TOUCHED_SCHEMA), and the ledger of those to upsert.

    None: a file of a generation that only led here is gone.
    """
    keys = ["part", "first_row"]
    events, ledgers = [_TOUCHED_SCHEMA.empty_table()], [LEDGER_SCHEMA.empty_table()]
    masked = [DELETIONS_SCHEMA.empty_table().select(keys)]
    mine = {manifest.generation for manifest in index.chain}
    for manifest in reversed(added):
        alone = View(index.store, [manifest])
        try:
            ledger, ((_, deletions),) = alone.documents(), alone.deletions()
            own = pc.is_in(deletions["part"], pa.array(alone.part_paths, pa.string()))
        except FileNotFoundError:
            if manifest.generation in mine:
                raise
            return None
        deletions = deletions.filter(pc.invert(own))  # `documents` has left its own ones out
        was = [deletions["doc_id"], deletions["n_rows"], pa.repeat(0, deletions.num_rows)]
        now = [ledger["doc_id"], pa.repeat(0, ledger.num_rows), ledger["n_rows"].cast(pa.int64())]
        events += [pa.table(columns, schema=_TOUCHED_SCHEMA) for columns in (was, now)]
        masked.append(deletions.select(keys))
        ledgers.append(ledger)
    # A document's first event says what it was in the older view, its last one what it is now.
    touched = pa.concat_tables(events).group_by("doc_id", use_threads=False)
    touched = touched.aggregate([("was", "first"), ("now", "last")])
    touched = touched.rename_columns({"was_first": "was", "now_last": "now"})
    if {manifest.generation for manifest in added} <= mine:
        every, gone = pa.concat_tables(ledgers), pa.concat_tables(masked)
        return touched, every.join(gone, keys, join_type="left anti")
    live = touched.filter(pc.greater(touched["now"], 0))
    return touched, index.documents(live["doc_id"].combine_chunks())


def _compared(before: View, index: View) -> tuple[pa.Table, pa.Table]:
    """As `_said_by`, of any two generations."""
    try:
        old = before.documents().select(["doc_id", "doc_hash", "n_rows"])
    except FileNotFoundError:
        raise _removed(before.info.generation, index) from None
    ledger = index.documents()
    new = ledger.select(["doc_id", "doc_hash", "n_rows"])
    new = new.append_column("at", pa.array(np.arange(new.num_rows)))
    old = old.rename_columns(["doc_id", "hash_was", "was"])
    both = old.join(new, "doc_id", join_type="full outer")
    was, now = (pc.fill_null(both[name], 0).cast(pa.int64()) for name in ("was", "n_rows"))
    touched = pa.table([both["doc_id"], was, now], schema=_TOUCHED_SCHEMA)
    if before.info.index_fingerprint != index.info.index_fingerprint:
        return touched, ledger
    same = pc.fill_null(pc.equal(both["hash_was"], both["doc_hash"]), False)
    at = both.filter(pc.invert(same))["at"].drop_null()
    return touched, ledger.take(at)


def _open(number: int, index: View) -> View:
    """Another generation of the same store."""
    store = index.store
    there = committed_generations(store)
    highest = max(*there, index.info.generation, *publications(store).values())
    if not 1 <= number <= highest:
        raise IndexStateError(
            f"{store.uri}: expected a generation up to {highest} to tell the changes since, got "
            f"{number}."
        )
    chain: list[Manifest] = []
    at: int | None = number
    while at is not None:
        if at not in there:
            raise _removed(number, index)
        chain.append(read_manifest(store, at))
        at = chain[-1].parent
    return View(store, chain)


def _removed(number: int, index: View) -> IndexStateError:
    there = committed_generations(index.store)
    now = index.info.generation
    return IndexStateError(
        f"generation {number} of {index.store.uri} was removed (vacuumed): what changed since "
        f"cannot be told; there are {', '.join(map(str, there))}.",
        f"Rebuild the store from index.to_table(), then keep up with changes(since={now}).",
    )


def _deleted(touched: pa.Table) -> pa.Table:
    """Passages beyond the end of each document as it is now; none is left of those that went."""
    touched = touched.filter(pc.greater(touched["was"], touched["now"]))
    now = touched["now"].to_numpy()
    n = touched["was"].to_numpy() - now
    rows = np.repeat(np.arange(len(n)), n)
    numbers = np.arange(n.sum()) + np.repeat(now - np.cumsum(n) + n, n)
    ids = touched["doc_id"].take(pa.array(rows))
    passages = pc.binary_join_element_wise(ids, pa.array(numbers).cast(pa.string()), "#")
    return pa.table([ids, passages], schema=DELETED_SCHEMA)
