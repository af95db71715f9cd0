"""The live rows of old parts, copied into new ones as they are stored, with their ledger.

A row group at a time, so that memory does not depend on the size of parts; rows keep their order,
and with it documents their rows in one run. No encoder, no numbers: bytes in, the same bytes out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors.errors import IndexStateError
from pipelines.index.layout import new_nonce, rows_path
from pipelines.index.parts import PartWriter, checked_file, describe_file, read_columns, write_table
from pipelines.index.records import FileRecord
from pipelines.index.schemas import LEDGER_SCHEMA
from pipelines.maintain.audit import CurrentPlaces, Generation, columns_of
from pipelines.maintain.compaction import OldPart
from pipelines.store.files import scratch_folder
from pipelines.store.store import Store

_THREADS = 16


@dataclass(frozen=True)
class NewPart:
    """A part of the new generation, kept or written, and its ledger."""

    part: FileRecord
    ledger: FileRecord | None
    """None: there is no document in it."""
    documents: int
    tokens: int
    truncated: int


@dataclass(frozen=True)
class PartRewriter:
    """Makes the parts of a compaction run; may be called by several threads at once."""

    store: Store
    run_id: str
    places: CurrentPlaces
    ledgers: Mapping[str, Sequence[str]]
    """Part -> files of LEDGER_SCHEMA with rows of it: `ledgers_by_part`."""
    nonce: str = field(default_factory=new_nonce)

    def keep(self, number: int, old: OldPart) -> NewPart:
        """A part that stays as it is; its ledger is written anew, with the places of today."""
        with self.store.open_input(old.file.path) as file:
            flags = pq.read_table(file, columns=["truncated"])["truncated"]
        ledger = self._ledger(old, old.file.path, 0)
        return self._described(number, old.file, [ledger], pc.sum(flags).as_py() or 0)

    def rewrite(self, number: int, olds: Sequence[OldPart]) -> NewPart:
        """One new part of the live rows of old ones.

        Raises:
            StorageError: the bytes of an old one are not those that were committed.
            IndexStateError: its ledger is of other rows than its live ones.
        """
        path = rows_path("data", self.run_id, number, 0, self.nonce)
        ledgers, truncated = [], 0
        with scratch_folder() as scratch, ExitStack() as stack:
            local = scratch / "part.parquet"
            writer: PartWriter | None = None
            schema: pa.Schema | None = None
            for old in olds:
                with checked_file(self.store, old.file) as source, pq.ParquetFile(source) as file:
                    if writer is None or schema is None:
                        schema = file.schema_arrow.remove_metadata()
                        writer = stack.enter_context(PartWriter(local, schema))
                    self._check(old, file, schema)
                    ledgers.append(self._ledger(old, path, writer.rows))
                    for rows in _live_rows(file, old.live()):
                        truncated += pc.sum(rows["truncated"]).as_py() or 0
                        writer.write(rows.replace_schema_metadata())
            stack.close()
            assert writer is not None, "a new part is made of old ones"
            record = self._put(local, path, writer.rows)
        return self._described(number, record, ledgers, truncated)

    def _put(self, local: Path, path: str, rows: int) -> FileRecord:
        record = describe_file(local, path, rows)
        self.store.upload(local, path)
        return record

    def _check(self, old: OldPart, file: pq.ParquetFile, schema: pa.Schema) -> None:
        url = self.store.url(old.file.path)
        if file.metadata.num_rows != old.file.rows:
            found = f"{file.metadata.num_rows:,}"
            raise IndexStateError(f"{url}: expected {old.file.rows:,} rows, found {found}.")
        if not file.schema_arrow.remove_metadata().equals(schema):
            raise IndexStateError(
                f"{url}: expected columns {columns_of(schema)}, as in the parts before it, found "
                f"{columns_of(file.schema_arrow)}."
            )

    def _ledger(self, old: OldPart, path: str, first_row: int) -> pa.Table:
        """The ledger of a part's live rows, which lie in `path` from `first_row` on."""
        files = [
            read_columns(self.store, name, None) for name in self.ledgers.get(old.file.path, ())
        ]
        rows = pa.concat_tables([LEDGER_SCHEMA.empty_table(), *files])
        rows = rows.filter(pc.equal(rows["part"], old.file.path))
        firsts, counts = (rows[name].to_numpy() for name in ("first_row", "n_rows"))
        inside = (firsts >= 0) & (firsts < old.file.rows)
        live = old.live()
        alive = inside.copy()
        alive[inside] = live[firsts[inside]]
        rows, firsts, counts = rows.filter(pa.array(alive)), firsts[alive], counts[alive]
        order = np.argsort(firsts)
        rows, firsts, counts = rows.take(pa.array(order)), firsts[order], counts[order]
        owned = np.arange(counts.sum()) + np.repeat(firsts - (np.cumsum(counts) - counts), counts)
        if not np.array_equal(owned, np.flatnonzero(live)):
            raise IndexStateError(
                f"{self.store.url(old.file.path)}: expected a document of the ledger for each of "
                f"its {int(live.sum()):,} live rows, found {len(owned):,} rows of documents.",
                "Nothing was changed. python -m pipelines.verify_index --deep says what is wrong.",
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
    """Part -> the ledger files of a chain that have rows of it."""
    paths = [file.path for generation in chain for file in generation.documents or []]
    with ThreadPoolExecutor(_THREADS) as pool:
        named = pool.map(lambda path: read_columns(store, path, ["part"])["part"].unique(), paths)
        found: dict[str, list[str]] = defaultdict(list)
        for path, parts in zip(paths, named, strict=True):
            for part in parts.to_pylist():
                found[part].append(path)
    return found


def _live_rows(file: pq.ParquetFile, live: np.ndarray) -> Iterator[pa.Table]:
    """By row group; those without a live row are not read."""
    start = 0
    for group in range(file.num_row_groups):
        stop = start + file.metadata.row_group(group).num_rows
        keep = live[start:stop]
        if keep.any():
            rows = file.read_row_group(group)
            yield rows if keep.all() else rows.filter(pa.array(keep))
        start = stop
