"""Reading an index: the live view of a generation, as Arrow, as a scanner or as a Ray dataset.

    from pipelines.index import open_index
    index = open_index("s3://vectors/wiki")
    index.to_table(columns=["doc_id", "dense"])

A reader trusts manifests and the tables they name, never a directory listing.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from actors.errors import IndexStateError, StorageError
from pipelines.index.generations import live_generation, read_chain
from pipelines.index.parts import Part, Ranges, read_rows, rows_by_part
from pipelines.index.records import Manifest, TableRecord
from pipelines.index.schemas import LEDGER_SCHEMA, REJECTS_SCHEMA, as_numbers, schema_without_parts
from pipelines.store.store import Store, open_store

if TYPE_CHECKING:
    import ray.data

    from pipelines.index.changes import Changes


_ROW = "file_row_number"
"""What DuckDB calls the row's number within its file; there is no other name for it."""
_TYPES = {
    pa.string(): "varchar",
    pa.bool_(): "boolean",
    pa.int32(): "integer",
    pa.float16(): "float",
    pa.float32(): "float",
}


def view_sql(index: Index, schema: pa.Schema) -> str:
    """The query of these columns of a view; it is one expression, without a semicolon.

    Raises:
        IndexStateError: a column is called as one that DuckDB adds.
    """
    columns = [f"passages.{_quoted(name)}" for name in schema.names]
    selected = f"select {', '.join(columns)}"
    parts = [index.store.url(path) for path in index.part_paths]
    if not parts:
        nothing = ", ".join(f"null::{_type(f.type)} as {_quoted(f.name)}" for f in schema)
        return f"{selected} from (select {nothing} where false) as passages"
    tables = [
        index.store.url(manifest.tables.deletions.path)
        for manifest, deletions in index.deletions()
        if deletions.num_rows
    ]
    if not tables:
        return f"{selected} from {_files(parts)} as passages"
    taken = {name.lower() for name in index.schema.names}  # to DuckDB Title is title
    if _ROW in taken:
        raise IndexStateError(
            f"{index.store.uri}: expected no column called {_ROW!r}, which DuckDB adds to rows it "
            "reads, found one.",
            "Use index.to_table() or index.scanner().",
        )
    file = "filename"
    while file in taken:
        file += "_"
    path = f"{_literal(index.store.url('.')[:-1])} || part"
    rows = f"unnest(range(first_row, first_row + n_rows)) as {_ROW}"
    # Row by row, and not by range, so that it is one hash join whatever is masked.
    return (
        f"{selected} from {_files(parts, f', filename = {_literal(file)}, {_ROW} = true')} "
        f"as passages anti join (select {path} as file, {rows} from {_files(tables)}) as masked "
        f"on passages.{_quoted(file)} = masked.file and passages.{_ROW} = masked.{_ROW}"
    )


def _files(urls: list[str], options: str = "") -> str:
    """Without Hive partitions: a folder called title=x would stand for the column."""
    listed = ", ".join(_literal(re.sub(r"[*?\[]", r"[\g<0>]", url)) for url in urls)
    return f"read_parquet([{listed}], hive_partitioning = false{options})"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _type(stored: pa.DataType) -> str:
    """DuckDB's name for what a view without parts may have."""
    if pa.types.is_list(stored) or pa.types.is_fixed_size_list(stored):
        return f"{_type(stored.value_type)}[]"
    if pa.types.is_struct(stored):
        return f"struct({', '.join(f'{_quoted(f.name)} {_type(f.type)}' for f in stored)})"
    return _TYPES.get(stored, "blob")


def open_index(
    uri: str,
    storage_options: Mapping[str, Any] | None = None,
    *,
    generation: int | None = None,
) -> Index:
    """Open the live generation of an index, or one by its number.

    Raises:
        IndexStateError: nothing is committed there, or it is of a newer format.
    """
    store = open_store(uri, storage_options)
    if generation is None:
        generation = live_generation(store)
    if generation is None:
        raise IndexStateError(
            f"{store.uri}: expected a committed index, found none.",
            "Run python -m pipelines.embed_corpus first; an interrupted run commits at its end.",
        )
    return Index(store, read_chain(store, generation))


class Index:
    """A generation with its ancestors; made by `open_index`. Rows come in no promised order.

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
        """How many live rows there are; tables of generations are read for that, no part is."""
        return sum(stop - first for part in self.parts for first, stop in part.live)

    def scanner(self, columns: Sequence[str] | None = None) -> ds.Scanner:
        """A pyarrow scanner over the live rows; only the columns asked for are read."""
        schema = self._projected(columns)
        # With threads, a scan that is not read to its end (head) would still hold the Python
        # generator when the interpreter exits, and abort it. Parquet decoding is threaded anyway.
        return ds.Scanner.from_batches(self._batches(schema), schema=schema, use_threads=False)

    def to_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All live rows in memory."""
        schema = self._projected(columns)
        return pa.Table.from_batches(self._batches(schema), schema=schema)

    def to_ray(self, columns: Sequence[str] | None = None) -> ray.data.Dataset:
        """The live rows as a Ray dataset, one task a part."""
        import ray.data

        names = self._projected(columns).names
        rows = [{"part": i} for i in range(len(self.parts))]
        dataset = ray.data.from_items(rows, override_num_blocks=max(len(rows), 1))
        return dataset.map_batches(
            _read_part, fn_kwargs={"index": self, "names": names}, batch_format="pyarrow"
        )

    def to_sql(self, columns: Sequence[str] | None = None) -> str:
        """The query that gives DuckDB the live rows: `duckdb.sql(index.to_sql(["title"]))`.

        It names the parts as they are now, so it is this generation's for ever. ColBERT comes as it
        is stored: blobs where that is `bytes`.

        Raises:
            IndexStateError: no such column; or a column is called as one that DuckDB adds.
        """
        return view_sql(self, self._projected(columns))

    def changes(self, since: int) -> Changes:
        """What a store that holds the rows of generation `since` needs, to hold those of this one.

        Raises:
            IndexStateError: there is no such generation, or not any more.
        """
        from pipelines.index.changes import changes_since  # it opens other indexes

        return changes_since(self, since)

    def rows_of(
        self, documents: pa.Table, columns: Sequence[str] | None = None
    ) -> pa.RecordBatchReader:
        """The rows of these documents: rows of `documents()`, in any order."""
        schema = self._projected(columns)
        wanted = rows_by_part(documents).items()
        batches = (b for part, ranges in wanted for b in self._read_rows(part, ranges, schema))
        return pa.RecordBatchReader.from_batches(schema, batches)

    def live_rows(self, part: Part, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The live rows of one of `parts`, in its order, some thousand at a time."""
        for rows in self._read_rows(part.path, part.live, self._projected(columns)):
            yield pa.Table.from_batches([rows])

    def documents(self, ids: pa.Array | None = None) -> pa.Table:
        """The ledger: a row for each live document, or for those of the given ids."""
        found = [LEDGER_SCHEMA.empty_table()]
        masked = {(part.path, first) for part in self.parts for first, _ in part.masked}
        for _, path in self.ledgers():
            table = self._read_file(path)
            if ids is not None:
                table = table.filter(pc.is_in(table["doc_id"], ids))
            rows = zip(table["part"].to_pylist(), table["first_row"].to_pylist(), strict=True)
            found.append(table.filter(pa.array([row not in masked for row in rows], pa.bool_())))
        return pa.concat_tables(found)

    def rejects(self) -> pa.Table:
        """What is not in the index, and why: of this generation and those before it."""
        paths = self._paths(self.info.tables.rejects)
        return pa.concat_tables([REJECTS_SCHEMA.empty_table(), *map(self._read_file, paths)])

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
        """All parts, the oldest first; also those that are masked altogether."""
        return [path for path, _ in self._part_rows]

    @cached_property
    def parts(self) -> list[Part]:
        """As `part_paths`, with the rows that are masked."""
        masked: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for _, deletions in self.deletions():
            for part, ranges in rows_by_part(deletions).items():
                masked[part] += ranges
        return [Part(path, rows, tuple(sorted(masked[path]))) for path, rows in self._part_rows]

    @cached_property
    def _part_rows(self) -> list[tuple[str, int]]:
        return [file for m in reversed(self.chain) for file in self._files(m.tables.parts)]

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for part in self.parts:
            yield from self._read_rows(part.path, part.live, schema)

    def _read_rows(self, path: str, ranges: Ranges, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for rows in read_rows(self.store, path, ranges, schema.names):
            table = as_numbers(rows, self.info).select(schema.names)
            yield from table.cast(schema).to_batches()

    def _projected(self, columns: Sequence[str] | None) -> pa.Schema:
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

    def _read_file(self, path: str) -> pa.Table:
        with self.store.open_input(path) as file:
            return pq.read_table(file)


def _read_part(batch: pa.Table, index: Index, names: list[str]) -> Iterator[pa.Table]:
    schema = index._projected(names)
    for number in batch["part"].to_pylist():
        yield schema.empty_table()
        yield from index.live_rows(index.parts[number], names)
