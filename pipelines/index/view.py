"""The live view of a generation: its manifests, files, deletions, and the rows that are left.

`reader.Index` is this with the ways to read it that users know.
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
    """A generation with its ancestors. Rows come in no promised order.

    It stays what it is, whatever is published later.
    """

    def __init__(self, store: Store, chain: Sequence[Manifest]) -> None:
        self.store = store
        self.chain = chain
        """Manifests: of the generation that is read, then its ancestors'."""

    @property
    def info(self) -> Manifest:
        """The manifest of the generation that is read."""
        return self.chain[0]

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns of the view; ColBERT as numbers, whichever way it is stored."""
        for path in self.part_paths[:1]:
            with self.store.open_input(path) as file:
                stored = pq.ParquetFile(file).schema_arrow.empty_table()
                return as_numbers(stored, self.info).schema
        return schema_without_parts(self.info)

    @property
    def passages(self) -> int:
        """The number of live rows; reads tables of the generations, and no part."""
        return sum(part.live_rows for part in self.parts)

    def rows_of(
        self, documents: pa.Table, columns: Sequence[str] | None = None
    ) -> pa.RecordBatchReader:
        """Passages of these documents, in any order; `documents`: rows of `documents()`."""
        schema = self.projected(columns)
        wanted = rows_by_part([documents]).items()
        batches = (b for part, ranges in wanted for b in self._read_rows(part, ranges, schema))
        return pa.RecordBatchReader.from_batches(schema, batches)

    def live_rows(self, part: Part, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The live rows of one of `parts`, in its order, some thousand at a time."""
        for rows in self._read_rows(part.path, part.live, self.projected(columns)):
            yield pa.Table.from_batches([rows])

    def documents(self, ids: pa.Array | None = None) -> pa.Table:
        """The ledger: a row for each live document, or for those of the given ids."""
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
        """What is not in the index, and why: of this generation and those before it."""
        paths = self._paths(self.info.tables.rejects)
        files = [read_columns(self.store, path) for path in paths]
        return pa.concat_tables([REJECTS_SCHEMA.empty_table(), *files])

    def ledgers(self) -> Iterator[tuple[Manifest, str]]:
        """Files of LEDGER_SCHEMA and the generation each is of, the oldest generation first."""
        for manifest in reversed(self.chain):
            for path in self._paths(manifest.tables.documents):
                yield manifest, path

    def unchanged(self) -> Iterator[tuple[Manifest, str]]:
        """As `ledgers`: files of UNCHANGED_SCHEMA."""
        for manifest in reversed(self.chain):
            if manifest.tables.unchanged:
                for path in self._paths(manifest.tables.unchanged):
                    yield manifest, path

    def deletions(self) -> Iterator[tuple[Manifest, pa.Table]]:
        """Tables of DELETIONS_SCHEMA, the newest generation's first."""
        for manifest in self.chain:
            yield manifest, self.read_table(manifest.tables.deletions)

    @cached_property
    def part_paths(self) -> list[str]:
        """Paths of all parts, the oldest first, also of those without a live row."""
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
        """The schema of some columns of the view, or of all.

        Raises:
            IndexStateError: no such column.
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
        """A table of a generation.

        Raises:
            StorageError: it is not what the manifest says.
        """
        data = self.store.read(table.path)
        if hashlib.sha256(data).hexdigest() != table.sha256:
            raise StorageError(
                f"{self.store.url(table.path)}: its checksum is not the manifest's.",
                "The file was damaged or replaced; open an older generation.",
            )
        return pq.read_table(pa.BufferReader(data))
