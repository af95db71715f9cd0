"""Output rows as they are stored: column types, Parquet settings, the two ColBERT storages.

Parquet: text is compressed and dictionary-encoded where it repeats; vectors are neither (fp16 is
noise to a compressor: 8 % smaller at several times the cost).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors.encoded import SCORE
from actors.fingerprint import file_sha256
from pipelines.local_files import scratch_folder
from pipelines.records import FileRecord
from pipelines.storage import Store

ColbertStorage = Literal["values", "bytes"]

VECTOR_COLUMNS = ("dense", "sparse", "colbert")
COMPUTED_COLUMNS = (*VECTOR_COLUMNS, SCORE)
"""Those that a model gives; a run has some of the vectors, or the score."""

_ROW_GROUP_BYTES = 8 << 20  # many row groups: writing one of 256 MB peaks at ten times its size
_REPEATING = ("doc_id", "title")


def stored_vectors(vectors: pa.Table, colbert: ColbertStorage) -> pa.Table:
    """An encoder's columns as a part stores them."""
    if colbert == "bytes" and "colbert" in vectors.column_names:
        column = colbert_to_bytes(vectors["colbert"].combine_chunks())
        at = vectors.column_names.index("colbert")
        vectors = vectors.set_column(at, "colbert", column)
    return vectors


def stored_rows(passages: pa.Table, vectors: pa.Table, colbert: ColbertStorage) -> pa.Table:
    """Passage columns and an encoder's columns as the rows of a part."""
    return side_by_side(passages, stored_vectors(vectors, colbert))


def side_by_side(passages: pa.Table, vectors: pa.Table) -> pa.Table:
    """Passage columns and their stored vectors: the rows of a part."""
    for name in vectors.column_names:
        passages = passages.append_column(vectors.schema.field(name), vectors[name])
    return passages


def colbert_to_bytes(column: pa.ListArray) -> pa.ListArray:
    """List<FixedSizeList<half|float>[d]> as List<FixedSizeBinary>: the same buffer, retyped.

    Little-endian, as Arrow's values are on every platform pyarrow supports.
    """

    def to_binary(rows: pa.FixedSizeListArray) -> pa.Array:
        values = rows.flatten()
        size = values.type.bit_width // 8
        data = values.buffers()[1].slice(values.offset * size, len(values) * size)
        width = rows.type.list_size * size
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(rows), [None, data])

    return _map_rows(column, to_binary)


def colbert_from_bytes(column: pa.ListArray, value_type: pa.DataType) -> pa.ListArray:
    """The inverse of `colbert_to_bytes`."""

    def to_numbers(rows: pa.FixedSizeBinaryArray) -> pa.Array:
        width = rows.type.byte_width
        data = rows.buffers()[1].slice(rows.offset * width, len(rows) * width)
        dim = width * 8 // value_type.bit_width
        numbers = pa.Array.from_buffers(value_type, len(rows) * dim, [None, data])
        return pa.FixedSizeListArray.from_arrays(numbers, dim)

    return _map_rows(column, to_numbers)


def _map_rows(column: pa.ListArray, convert: Callable[[pa.Array], pa.Array]) -> pa.ListArray:
    offsets = pc.subtract(column.offsets, column.offsets[0])
    return pa.ListArray.from_arrays(offsets, convert(column.flatten()))


class PartWriter:
    """Writes output rows to a local Parquet file, in row groups of bounded size."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        texts = [field.name for field in schema if pa.types.is_string(field.type)]
        self._path = path
        self._writer = pq.ParquetWriter(
            path,
            schema,
            use_dictionary=[name for name in texts if name in _REPEATING],
            # A minimum and a maximum of vectors' numbers help nobody, and take half of the writing.
            write_statistics=[name for name in schema.names if name not in VECTOR_COLUMNS],
            compression=dict.fromkeys(
                [*texts, "sparse.indices.list.element", "sparse.values.list.element"], "zstd"
            ),
        )
        self._pending: list[pa.Table] = []
        self._pending_bytes = 0
        self.rows = 0

    def write(self, table: pa.Table) -> None:
        """Add rows, in order."""
        if not table.num_rows:
            return
        self._pending.append(table)
        self._pending_bytes += table.nbytes
        self.rows += table.num_rows
        if self._pending_bytes >= _ROW_GROUP_BYTES:
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._pending:
            table = pa.concat_tables(self._pending)
            groups = max(-(-self._pending_bytes // _ROW_GROUP_BYTES), 1)
            self._writer.write_table(table, row_group_size=-(-table.num_rows // groups))
        self._pending, self._pending_bytes = [], 0


def describe_file(local: Path, path: str, rows: int) -> FileRecord:
    """The record of a finished local file that will lie at `path` in the index."""
    return FileRecord(path=path, rows=rows, bytes=local.stat().st_size, sha256=file_sha256(local))


def write_table(store: Store, table: pa.Table, path: str) -> FileRecord:
    """Put a small table (ledger, rejects, a generation's tables) into the index."""
    with scratch_folder() as scratch:
        local = scratch / "table.parquet"
        pq.write_table(table, local, compression="zstd")
        record = describe_file(local, path, table.num_rows)
        store.upload(local, path)
    return record
