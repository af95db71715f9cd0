"""Defines the live view of a generation: manifests, tables, deletions, and the live rows.

`reader.Index` adds the methods that users call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors.errors import IndexStateError, StorageError
from pipelines.index.parts import Part, Ranges, read_columns, read_rows, rows_by_part
from pipelines.index.records import Manifest, TableRecord
from pipelines.index.schemas import LEDGER_SCHEMA, REJECTS_SCHEMA, as_numbers, schema_without_parts
from pipelines.store.store import Store


class View:
    """A generation with its ancestors. The order of rows is unspecified.

    Later publications do not change it.
    """

    def __init__(self, store: Store, chain: Sequence[Manifest]) -> None:
        self.store = store
        self.chain = chain
        """Manifests of the generation and its ancestors, the newest first."""

    @property
    def info(self) -> Manifest:
        """The manifest of the generation."""
        return self.chain[0]

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns of the view; ColBERT vectors are numbers, even if stored as bytes."""
        for path in self.part_paths[:1]:
            with self.store.open_input(path) as file:
                stored = pq.ParquetFile(file).schema_arrow.empty_table()
                return as_numbers(stored, self.info).schema
        return schema_without_parts(self.info)

    @property
    def passages(self) -> int:
        """The number of live rows, computed without reading a part."""
        return sum(part.live_rows for part in self.parts)

    def rows_of(
        self, documents: pa.Table, columns: Sequence[str] | None = None
    ) -> pa.RecordBatchReader:
        """Return the passages of `documents`, which are rows of `documents()`, in any order."""
        schema = self.projected(columns)
        wanted = rows_by_part([documents]).items()
        batches = (b for part, ranges in wanted for b in self._read_rows(part, ranges, schema))
        return pa.RecordBatchReader.from_batches(schema, batches)

    def live_rows(self, part: Part, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the live rows of one of `parts`, ascending, a few thousand at a time."""
        for rows in self._read_rows(part.path, part.live, self.projected(columns)):
            yield pa.Table.from_batches([rows])

    def documents(self, ids: pa.Array | None = None) -> pa.Table:
        """Return the ledger: a row for each live document, or for each one with an id in `ids`."""
        found = [LEDGER_SCHEMA.empty_table()]
        masked = {(part.path, first) for part in self.parts for first, _ in part.masked}
        for _, path in self.ledgers():
            table = read_columns(self.store, path)
            if ids is not None:
                table = table.filter(pc.is_in(table["doc_id"], ids))
            rows = zip(table["part"].to_pylist(), table["first_row"].to_pylist(), strict=True)
            found.append(table.filter(pa.array([row not in masked for row in rows], pa.bool_())))
        return pa.concat_tables(found)

    def rejects(self) -> pa.Table:
        """Return the rejects of the view: documents that are not in the index, and why."""
        paths = self._paths(self.info.tables.rejects)
        files = [read_columns(self.store, path) for path in paths]
        return pa.concat_tables([REJECTS_SCHEMA.empty_table(), *files])

    def ledgers(self) -> Iterator[tuple[Manifest, str]]:
        """Yield the manifest and path of each ledger file, the oldest generation first."""
        for manifest in reversed(self.chain):
            for path in self._paths(manifest.tables.documents):
                yield manifest, path

    def unchanged(self) -> Iterator[tuple[Manifest, str]]:
        """Yield the manifest and path of each file of UNCHANGED_SCHEMA, the oldest first."""
        for manifest in reversed(self.chain):
            if manifest.tables.unchanged:
                for path in self._paths(manifest.tables.unchanged):
                    yield manifest, path

    def deletions(self) -> Iterator[tuple[Manifest, pa.Table]]:
        """Yield each manifest with its table of DELETIONS_SCHEMA, the newest first."""
        for manifest in self.chain:
            yield manifest, self.read_table(manifest.tables.deletions)

    @cached_property
    def part_paths(self) -> list[str]:
        """Paths of all parts, including those without live rows, the oldest first."""
        return [path for path, _ in self._part_rows]

    @cached_property
    def parts(self) -> list[Part]:
        """All parts, in the order of `part_paths`."""
        masked = rows_by_part(table for _, table in self.deletions())
        return [Part(path, rows, masked.get(path, ())) for path, rows in self._part_rows]

    @cached_property
    def _part_rows(self) -> list[tuple[str, int]]:
        return [file for m in reversed(self.chain) for file in self._files(m.tables.parts)]

    def _read_rows(self, path: str, ranges: Ranges, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for rows in read_rows(self.store, path, ranges, schema.names):
            table = as_numbers(rows, self.info).select(schema.names)
            yield from table.cast(schema).to_batches()

    def projected(self, columns: Sequence[str] | None) -> pa.Schema:
        """Return the schema of the given columns, or of all columns.

        Raises:
            IndexStateError: a column does not exist.
        """
        if columns is None:
            return self.schema
        unknown = [name for name in columns if name not in self.schema.names]
        if unknown:
            raise IndexStateError(
                f"{self.store.uri}: expected columns among {', '.join(self.schema.names)}, "
                f"got {unknown[0]!r}."
            )
        return pa.schema([self.schema.field(name) for name in columns])

    def _paths(self, table: TableRecord) -> list[str]:
        return [path for path, _ in self._files(table)]

    def _files(self, table: TableRecord) -> Iterator[tuple[str, int]]:
        files = self.read_table(table)
        return zip(files["path"].to_pylist(), files["rows"].to_pylist(), strict=True)

    def read_table(self, table: TableRecord) -> pa.Table:
        """Read a table of a generation and compare its checksum.

        Raises:
            StorageError: the checksum differs from the manifest's.
        """
        data = self.store.read(table.path)
        if hashlib.sha256(data).hexdigest() != table.sha256:
            raise StorageError(
                f"{self.store.url(table.path)}: expected the manifest's checksum, found another.",
                "The file was damaged or replaced; open an older generation.",
            )
        return pq.read_table(pa.BufferReader(data))
