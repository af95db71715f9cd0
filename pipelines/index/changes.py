"""Computes what changed between two generations, to update a copy such as a vector store.

    changes = open_index("s3://vectors/wiki").changes(since=12)
    changes.deleted              # doc_id, passage_id
    changes.upserts()            # rows of new and changed documents

If the newer generation descends from the older one, only the ledgers and deletions of the
generations in between are read. Otherwise, as after a rollback, the two ledgers are compared.
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
"""The number of rows of a document in the older and in the newer view; 0 if it is absent."""

_BATCH_ROWS = 4096


@dataclass(frozen=True)
class Changes:
    """The changes that turn the rows of generation `since` into those of `index`.

    Iteration yields batches of passages to delete, then batches of rows to upsert (all columns).
    """

    index: View
    since: int
    deleted: pa.Table
    """DELETED_SCHEMA: passages that no longer exist."""
    documents: pa.Table
    """LEDGER_SCHEMA: the new and the changed documents. All passages of a changed document are
    upserted, even if only its metadata was edited."""

    def upserts(self, columns: Sequence[str] | None = None) -> pa.RecordBatchReader:
        """Return the passages of `documents`; batches are read when the caller asks for them.

        Raises:
            IndexStateError: a column does not exist.
        """
        return self.index.rows_of(self.documents, columns)

    def __iter__(self) -> Iterator[tuple[Literal["delete", "upsert"], pa.RecordBatch]]:
        for batch in self.deleted.to_batches(_BATCH_ROWS):
            yield "delete", batch
        for batch in self.upserts():
            yield "upsert", batch


def changes_since(index: View, since: int) -> Changes:
    """Return the changes from generation `since` of the same index to the generation of `index`.

    Raises:
        IndexStateError: the generation never existed, or it was removed.
    """
    added = _generations_after(index, since)
    found = None if added is None else _said_by(index, added)
    if found is None:
        found = _compared(_open(since, index), index)
    touched, documents = found
    return Changes(index, since, _deleted(touched), documents)


def _generations_after(index: View, since: int) -> list[Manifest] | None:
    """Return the generations that lead from `since` to `index`, the newest first.

    Returns None if `index` does not descend from `since`, or if a manifest on the way is missing.
    Compacted generations are left out, because they hold the view of the generation they rewrite.
    """
    store, known = index.store, {manifest.generation: manifest for manifest in index.chain}

    def read(number: int) -> Manifest | None:
        if number in known or store.exists(manifest_path(number)):
            return known.get(number) or read_manifest(store, number)
        return None

    def rewritten_by(manifest: Manifest | None) -> int | None:
        """Return the generation this one rewrites in the same columns, or None."""
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
    """Return the touched documents (_TOUCHED_SCHEMA), and the ledger of those to upsert.

    Returns None if a file is missing whose generation is no longer an ancestor of `index`.
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
        deletions = deletions.filter(pc.invert(own))  # `documents` already leaves out its own ones
        was = [deletions["doc_id"], deletions["n_rows"], pa.repeat(0, deletions.num_rows)]
        now = [ledger["doc_id"], pa.repeat(0, ledger.num_rows), ledger["n_rows"].cast(pa.int64())]
        events += [pa.table(columns, schema=_TOUCHED_SCHEMA) for columns in (was, now)]
        masked.append(deletions.select(keys))
        ledgers.append(ledger)
    # The first event of a document has its rows in the older view, the last one those of now.
    touched = pa.concat_tables(events).group_by("doc_id", use_threads=False)
    touched = touched.aggregate([("was", "first"), ("now", "last")])
    touched = touched.rename_columns({"was_first": "was", "now_last": "now"})
    if {manifest.generation for manifest in added} <= mine:
        every, gone = pa.concat_tables(ledgers), pa.concat_tables(masked)
        return touched, every.join(gone, keys, join_type="left anti")
    live = touched.filter(pc.greater(touched["now"], 0))
    return touched, index.documents(live["doc_id"].combine_chunks())


def _compared(before: View, index: View) -> tuple[pa.Table, pa.Table]:
    """Return what `_said_by` returns, by comparing the ledgers of any two generations."""
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
    """Open another generation of the same store."""
    store = index.store
    there = committed_generations(store)
    highest = max(*there, index.info.generation, *publications(store).values())
    if not 1 <= number <= highest:
        raise IndexStateError(
            f"{store.uri}: expected a generation from 1 to {highest} to compute changes from, "
            f"got {number}."
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
        f"generation {number} of {index.store.uri} was removed (vacuumed): changes since it "
        f"cannot be computed; existing generations: {', '.join(map(str, there))}.",
        f"Rebuild your copy from index.to_table(), then update it with changes(since={now}).",
    )


def _deleted(touched: pa.Table) -> pa.Table:
    """Return the passages that each document has lost; a deleted document has lost all."""
    touched = touched.filter(pc.greater(touched["was"], touched["now"]))
    now = touched["now"].to_numpy()
    n = touched["was"].to_numpy() - now
    rows = np.repeat(np.arange(len(n)), n)
    numbers = np.arange(n.sum()) + np.repeat(now - np.cumsum(n) + n, n)
    ids = touched["doc_id"].take(pa.array(rows))
    passages = pc.binary_join_element_wise(ids, pa.array(numbers).cast(pa.string()), "#")
    return pa.table([ids, passages], schema=DELETED_SCHEMA)
