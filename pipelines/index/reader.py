"""Reads the view of a generation: as an Arrow table, a scanner, a Ray dataset, or SQL for DuckDB.

    from pipelines.index import open_index
    index = open_index("s3://vectors/wiki")
    index.to_table(columns=["doc_id", "dense"])

A reader finds parts by manifests and the tables they name, never by a directory listing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as ds

from actors.errors import IndexStateError
from pipelines.index.changes import Changes, changes_since
from pipelines.index.generations import live_generation, read_chain, require_live
from pipelines.index.view import View
from pipelines.store.store import open_store

if TYPE_CHECKING:
    import ray.data


_ROW = "file_row_number"
"""DuckDB's name for the number of a row within its file; it cannot be changed."""
_TYPES = {
    pa.string(): "varchar",
    pa.bool_(): "boolean",
    pa.int32(): "integer",
    pa.float16(): "float",
    pa.float32(): "float",
}


def view_sql(index: View, schema: pa.Schema) -> str:
    """Return the SQL query for the columns of `schema`: one expression, without a semicolon.

    Raises:
        IndexStateError: a column has the name of a column that DuckDB adds.
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
    taken = {name.lower() for name in index.schema.names}  # DuckDB ignores case
    if _ROW in taken:
        raise IndexStateError(
            f"{index.store.uri}: expected no column called {_ROW!r}, which DuckDB adds to every "
            "row, found one.",
            "Use index.to_table() or index.scanner().",
        )
    file = "filename"
    while file in taken:
        file += "_"
    path = f"{_literal(index.store.url('.')[:-1])} || part"
    rows = f"unnest(range(first_row, first_row + n_rows)) as {_ROW}"
    # Joins single rows, not ranges, so that DuckDB plans one hash join.
    return (
        f"{selected} from {_files(parts, f', filename = {_literal(file)}, {_ROW} = true')} "
        f"as passages anti join (select {path} as file, {rows} from {_files(tables)}) as masked "
        f"on passages.{_quoted(file)} = masked.file and passages.{_ROW} = masked.{_ROW}"
    )


def _files(urls: list[str], options: str = "") -> str:
    """Return a scan without Hive partitions: a folder `title=x` would replace column `title`."""
    listed = ", ".join(_literal(re.sub(r"[*?\[]", r"[\g<0>]", url)) for url in urls)
    return f"read_parquet([{listed}], hive_partitioning = false{options})"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _type(stored: pa.DataType) -> str:
    """Return DuckDB's name of a type that a view without parts may have."""
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
    """Open the live generation of an index, or the generation with the given number.

    Raises:
        IndexStateError: nothing is published, or the generation is missing or of another format.
    """
    store = open_store(uri, storage_options)
    number = require_live(store) if generation is None else generation
    return Index(store, read_chain(store, number))


class Index(View):
    """A generation with its ancestors, opened by `open_index`. The order of rows is unspecified.

    Later publications do not change it.
    """

    def scanner(self, columns: Sequence[str] | None = None) -> ds.Scanner:
        """Return a pyarrow scanner over the live rows; it reads only `columns`."""
        schema = self.projected(columns)
        # With threads, an unfinished scan (head) would hold the Python generator when the
        # interpreter exits, and abort it. Parquet decoding uses threads anyway.
        return ds.Scanner.from_batches(self._batches(schema), schema=schema, use_threads=False)

    def to_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return all live rows in memory."""
        schema = self.projected(columns)
        return pa.Table.from_batches(self._batches(schema), schema=schema)

    def to_ray(self, columns: Sequence[str] | None = None) -> ray.data.Dataset:
        """Return the live rows as a Ray dataset, with one task for each part."""
        import ray.data

        names = self.projected(columns).names
        rows = [{"part": i} for i in range(len(self.parts))]
        dataset = ray.data.from_items(rows, override_num_blocks=max(len(rows), 1))
        return dataset.map_batches(
            _read_part, fn_kwargs={"index": self, "names": names}, batch_format="pyarrow"
        )

    def to_sql(self, columns: Sequence[str] | None = None) -> str:
        """Return a DuckDB query for the live rows: `duckdb.sql(index.to_sql(["title"]))`.

        The query names the parts, so it always reads this generation. ColBERT vectors have their
        stored type: blobs if `colbert_storage` is `bytes`.

        Raises:
            IndexStateError: a column does not exist, or has the name of one that DuckDB adds.
        """
        return view_sql(self, self.projected(columns))

    def changes(self, since: int) -> Changes:
        """Return what turns a copy of generation `since` into a copy of this generation.

        Raises:
            IndexStateError: the generation never existed, or it was removed.
        """
        return changes_since(self, since)

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for part in self.parts:
            yield from self._read_rows(part.path, part.live, schema)


def _read_part(batch: pa.Table, index: Index, names: list[str]) -> Iterator[pa.Table]:
    schema = index.projected(names)
    for number in batch["part"].to_pylist():
        yield schema.empty_table()
        yield from index.live_rows(index.parts[number], names)


def describe_index(index: Index) -> str:
    """Describe the generation and its view in one line, without reading a part."""
    info, counts = index.info, index.info.counts
    held = [f"{counts.live_documents:,} documents", f"{index.passages:,} passages"]
    if not counts.unchanged:  # only ledgers know the tokens of rows from ancestors
        held.append(f"{counts.tokens:,} tokens")
    live = live_generation(index.store)
    number = f"generation {info.generation}"
    if live != info.generation:
        number += f" (not live: {live or 'none'} is)"
    return f"{number}, {', '.join(held)}, {info.model.name} ({', '.join(info.outputs)})"
