"""The live view as DuckDB's SQL: parts by name, less the rows that generations mask."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pyarrow as pa

from actors.errors import IndexStateError

if TYPE_CHECKING:
    from pipelines.index import Index

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
