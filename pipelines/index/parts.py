"""Reads and writes parts: column types, Parquet settings, the two storage types of ColBERT.

Text is compressed, and dictionary-encoded if it repeats. Vectors are neither: compressing fp16
saves 8 % at several times the cost.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors.encoded import SCORE
from actors.errors import StorageError
from pipelines.index.records import FileRecord
from pipelines.store.files import file_sha256, scratch_folder
from pipelines.store.store import Store

ColbertStorage = Literal["values", "bytes"]

VECTOR_COLUMNS = ("dense", "sparse", "colbert")
COMPUTED_COLUMNS = (*VECTOR_COLUMNS, SCORE)
"""Columns that a model computes; a run has some of the vectors, or the score."""

_ROW_GROUP_BYTES = 8 << 20  # small: writing a row group of 256 MB needs ten times its size
_REPEATING = ("doc_id", "title")


def stored_vectors(vectors: pa.Table, colbert: ColbertStorage) -> pa.Table:
    """Convert the columns of an encoder to the types that a part stores."""
    if colbert == "bytes" and "colbert" in vectors.column_names:
        column = colbert_to_bytes(vectors["colbert"].combine_chunks())
        at = vectors.column_names.index("colbert")
        vectors = vectors.set_column(at, "colbert", column)
    return vectors


def stored_rows(passages: pa.Table, vectors: pa.Table, colbert: ColbertStorage) -> pa.Table:
    """Return passage columns and an encoder's columns as the rows of a part."""
    return side_by_side(passages, stored_vectors(vectors, colbert))


def side_by_side(passages: pa.Table, vectors: pa.Table) -> pa.Table:
    """Append stored vectors to passage columns."""
    for name in vectors.column_names:
        passages = passages.append_column(vectors.schema.field(name), vectors[name])
    return passages


def colbert_to_bytes(column: pa.ListArray) -> pa.ListArray:
    """Return List<FixedSizeList<half|float>[d]> as List<FixedSizeBinary> over the same buffer.

    The bytes are little-endian, like Arrow's values on every platform that pyarrow supports.
    """

    def to_binary(rows: pa.FixedSizeListArray) -> pa.Array:
        values = rows.flatten()
        size = values.type.bit_width // 8
        data = values.buffers()[1].slice(values.offset * size, len(values) * size)
        width = rows.type.list_size * size
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(rows), [None, data])

    return _map_rows(column, to_binary)


def colbert_from_bytes(column: pa.ListArray, value_type: pa.DataType) -> pa.ListArray:
    """Invert `colbert_to_bytes`."""

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
    """A writer of output rows to a local Parquet file, in row groups of bounded size."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        texts = [field.name for field in schema if pa.types.is_string(field.type)]
        self._path = path
        self._writer = pq.ParquetWriter(
            path,
            schema,
            use_dictionary=[name for name in texts if name in _REPEATING],
            # Minimum and maximum of vector components are useless and take half of the time.
            write_statistics=[name for name in schema.names if name not in VECTOR_COLUMNS],
            compression=dict.fromkeys(
                [*texts, "sparse.indices.list.element", "sparse.values.list.element"], "zstd"
            ),
        )
        self._pending: list[pa.Table] = []
        self._pending_bytes = 0
        self.rows = 0

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        if not table.num_rows:
            return
        self._pending.append(table)
        self._pending_bytes += table.nbytes
        self.rows += table.num_rows
        if self._pending_bytes >= _ROW_GROUP_BYTES:
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
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
    """Return the record of a finished local file that will be stored at `path`."""
    return FileRecord(path=path, rows=rows, bytes=local.stat().st_size, sha256=file_sha256(local))


def write_table(store: Store, table: pa.Table, path: str) -> FileRecord:
    """Write a small table (ledger, rejects, a table of a generation) to the index."""
    with scratch_folder() as scratch:
        local = scratch / "table.parquet"
        pq.write_table(table, local, compression="zstd")
        record = describe_file(local, path, table.num_rows)
        store.upload(local, path)
    return record


Ranges = Sequence[tuple[int, int]]
"""Ranges of rows as pairs [first, stop)."""

_BATCH_ROWS = 4096


@dataclass(frozen=True)
class Part:
    """A part of a view, and which of its rows are deleted."""

    path: str
    rows: int
    masked: Ranges
    """Ranges of deleted rows, in any order; they may overlap."""

    @cached_property
    def live(self) -> list[tuple[int, int]]:
        """Ranges of live rows, ascending."""
        ranges, at = [], 0
        for first, stop in sorted(self.masked):
            if first > at:
                ranges.append((at, first))
            at = max(at, stop)
        return [*ranges, (at, self.rows)] if at < self.rows else ranges

    @cached_property
    def live_rows(self) -> int:
        """The number of live rows."""
        return sum(stop - first for first, stop in self.live)

    def live_mask(self) -> np.ndarray:
        """Return a bool for each row. It is not cached: an index may have billions of rows."""
        return _row_mask(self.rows, self.live)


def _row_mask(rows: int, ranges: Ranges) -> np.ndarray:
    mask = np.zeros(rows, bool)
    for first, stop in ranges:
        mask[first:stop] = True
    return mask


def rows_by_part(places: Iterable[pa.Table]) -> dict[str, list[tuple[int, int]]]:
    """Return part -> ranges of rows, from columns part, first_row and n_rows, in table order."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for table in places:
        columns = (table[name].to_pylist() for name in ("part", "first_row", "n_rows"))
        for part, first, n in zip(*columns, strict=True):
            found[part].append((first, first + n))
    return found


def read_rows(store: Store, path: str, ranges: Ranges, names: Sequence[str]) -> Iterator[pa.Table]:
    """Yield columns `names` of the rows in `ranges`, ascending, a few thousand rows at a time."""
    if not ranges:
        return
    with store.open_input(path) as file:
        parquet = pq.ParquetFile(file, pre_buffer=True)
        metadata = parquet.metadata
        wanted = _row_mask(metadata.num_rows, ranges)
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        by_group = np.split(wanted, np.cumsum(sizes)[:-1]) if sizes else []
        groups = [number for number, rows in enumerate(by_group) if rows.any()]
        if not groups:
            return
        left = np.concatenate([by_group[number] for number in groups])
        for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=groups, columns=list(names)):
            mine, left = left[: batch.num_rows], left[batch.num_rows :]
            table = pa.Table.from_batches([batch])
            yield table if mine.all() else table.filter(pa.array(mine))


@contextmanager
def local_file(store: Store, path: str) -> Iterator[Path]:
    """Yield the path of the file if the store is local, else of a temporary copy.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    if store.is_local:
        yield Path(store.path(path))
        return
    with tempfile.TemporaryDirectory(prefix="packvec-") as scratch:
        local = Path(scratch) / "file.parquet"
        store.download(path, local)
        yield local


@contextmanager
def checked_file(store: Store, record: FileRecord) -> Iterator[Path]:
    """Yield `local_file` after comparing its checksum.

    Raises:
        StorageError: the file is missing, or its bytes are not those that were committed.
    """
    try:
        with local_file(store, record.path) as local:
            found = file_sha256(local)
            if found == record.sha256:
                yield local
                return
    except FileNotFoundError:
        found = "no file"
    raise StorageError(
        f"{store.url(record.path)}: expected sha256 {record.sha256}, found {found}.",
        "python -m pipelines.verify_index --deep lists all damaged files.",
    )


def read_columns(store: Store, path: str, columns: list[str] | None = None) -> pa.Table:
    """Read columns of a Parquet file of the index; all of them if none are named."""
    with store.open_input(path) as file:
        return pq.read_table(file, columns=columns)
