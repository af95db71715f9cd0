"""Reads Parquet files: a piece is a row group, and only the configured columns are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors.errors import SourceError
from pipelines.config.sections import SourceConfig
from pipelines.index.schemas import RejectCode
from pipelines.source.formats.base import (
    BATCH_DOCUMENTS,
    Access,
    DocumentBatch,
    FileFacts,
    check_present,
    derived_id,
)
from pipelines.source.units import FileRange, SourceFile


class ParquetFiles:
    """Parquet: a column is a name or, inside structs, a dotted path."""

    def __init__(self, config: SourceConfig) -> None:
        self._columns = config.columns
        self._config = config

    def inspect(self, access: Access, file: SourceFile, name: str) -> FileFacts:
        """Return the row groups, and the types of the columns."""
        try:
            with access.open(file) as opened:
                parquet = pq.ParquetFile(opened)
                metadata, schema = parquet.metadata, parquet.schema_arrow
        except (OSError, pa.ArrowException) as error:  # pyarrow raises either for a damaged footer
            reason = " ".join(str(error).split())
            raise SourceError(f"{file.path}: expected a Parquet file ({reason:.160}).") from None
        nothing = schema.empty_table()
        inside: dict[str, pa.DataType] = {}
        for column in self._names:
            if column not in schema.names:
                with suppress(KeyError, pa.ArrowException):
                    inside[column] = _column_at(nothing, column).type
        check_present(self._config, [*schema.names, *inside], file.path)
        present = {field.name: field.type for field in schema} | inside
        self._check_types(present, file.path)
        present = {name: self._copied_as(name, kind) for name, kind in present.items()}
        pieces, first = [], 0
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            pieces.append(FileRange(file, name, first, first + rows, group, rows))
            first += rows
        return FileFacts(pieces, present)

    def read(self, access: Access, piece: FileRange) -> Iterator[DocumentBatch]:
        """Yield the rows of the row group."""
        first = piece.start
        with access.open(piece.file) as opened:
            # Checksums, if the file has them, find damage that decompression does not.
            parquet = pq.ParquetFile(opened, pre_buffer=True, page_checksum_verification=True)
            for batch in parquet.iter_batches(
                BATCH_DOCUMENTS, row_groups=[piece.row_group], columns=self._names
            ):
                table = self._canonical(piece, pa.Table.from_batches([batch]), first)
                first += table.num_rows
                yield _without_undecodable(table)

    def no_documents(self, access: Access, piece: FileRange) -> DocumentBatch:
        """Return an empty batch with the types of the file."""
        with access.open(piece.file) as opened:
            schema = pq.ParquetFile(opened).schema_arrow
        return DocumentBatch(self._canonical(piece, schema.empty_table(), 0))

    @property
    def _names(self) -> list[str]:
        return list(dict.fromkeys(filter(None, self._columns.by_key.values())))

    def _canonical(self, piece: FileRange, table: pa.Table, first: int) -> pa.Table:
        columns, n = self._columns, table.num_rows
        if columns.id:
            ids = _column_at(table, columns.id).cast(pa.string())
        else:
            ids = pa.array([derived_id(piece, first + i) for i in range(n)], pa.string())
        title = _column_at(table, columns.title) if columns.title else pa.nulls(n, pa.string())
        fields = {
            "doc_id": ids,
            "text": _column_at(table, columns.text).cast(pa.string()),
            "title": title.cast(pa.string()),
        }
        return pa.table(fields | {name: self._copied(table, name) for name in columns.copied})

    def _copied(self, table: pa.Table, name: str) -> pa.ChunkedArray:
        column = _column_at(table, name)
        return column.cast(self._copied_as(name, column.type))

    def _copied_as(self, name: str, kind: pa.DataType) -> pa.DataType:
        """Return the type in the index: views become plain types, which pyarrow can filter."""
        if name in self._columns.copied_strings or pa.types.is_string_view(kind):
            return pa.string()
        return pa.binary() if pa.types.is_binary_view(kind) else kind

    def _check_types(self, present: dict[str, pa.DataType], path: str) -> None:
        for key, name in self._columns.strings.items():
            if name is None:
                continue
            kind = present[name]
            if not (_is_text(kind) or (key == "id" and pa.types.is_integer(kind))):
                wanted = "strings or integers" if key == "id" else "strings"
                raise SourceError(
                    f"source.columns.{key}: expected {wanted} in {name!r} of {path}, found {kind}."
                )


def _column_at(table: pa.Table, path: str) -> pa.ChunkedArray:
    """Return the column at a name, or at a dotted path into structs."""
    if path in table.column_names:
        return table[path]
    first, *rest = path.split(".")
    return pc.struct_field(table[first], rest)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    kinds = pa.types
    # A column that contains only nulls (an empty pandas partition) has the null type.
    tests = (kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_null)
    return any(test(kind) for test in tests)


def _without_undecodable(table: pa.Table) -> DocumentBatch:
    """Replace values that are not UTF-8 by nulls, and mark their rows as faults.

    Arrow does not validate Parquet strings; converting them to Python would fail.
    """
    bad = np.zeros(table.num_rows, dtype=bool)
    for name in table.column_names:
        try:
            table[name].validate(full=True)
        except pa.ArrowInvalid:
            rows = np.array([not _is_valid(table[name], row) for row in range(table.num_rows)])
            bad |= rows
            kept = pa.array([None if b else row for row, b in enumerate(rows)], pa.int64())
            column = table[name].take(kept)
            table = table.set_column(table.column_names.index(name), name, column)
    fault: tuple[RejectCode, str] = ("bad_encoding", "not valid UTF-8")
    return DocumentBatch(table, {int(row): fault for row in np.flatnonzero(bad)})


def _is_valid(column: pa.ChunkedArray, row: int) -> bool:
    try:
        column.take(pa.array([row])).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


@dataclass(frozen=True)
class ChunkSize:
    """The sizes of a column in one row group, read from the footer."""

    encoded: int
    """Bytes: 4 per value more than the text, or fewer if a dictionary holds repeated texts."""
    compressed: int
    is_dictionary: bool
    """Whether almost all values are dictionary indices; writers stop at a dictionary of 1 MB."""


def text_sizes(access: Access, file: SourceFile, column: str) -> list[ChunkSize]:
    """Return the sizes of a column (a dotted path inside structs) for each row group."""
    with access.open(file) as opened:
        metadata = pq.ParquetFile(opened).metadata
    sizes = []
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        chunks = map(group.column, range(metadata.num_columns))
        chunk = next(chunk for chunk in chunks if chunk.path_in_schema == column)
        is_dictionary = False
        if chunk.has_dictionary_page:
            pages = chunk.total_compressed_size
            pages -= chunk.data_page_offset - chunk.dictionary_page_offset
            is_dictionary = pages <= 4 * group.num_rows
        sizes.append(
            ChunkSize(chunk.total_uncompressed_size, chunk.total_compressed_size, is_dictionary)
        )
    return sizes
