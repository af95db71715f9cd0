"""Documents on storage: which files there are, the units they are read in, and the reading.

A unit is one row group of a Parquet file. Knows nothing of passages, tokens or vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from actors.errors import SourceChangedError, SourceError, UnreadableUnitError
from pipelines.columns import check_columns, check_metadata
from pipelines.config import SourceConfig
from pipelines.listing import SourceFile, describe_file, find_files, is_local
from pipelines.storage_faults import FAULTS, fault_of

_BATCH_DOCUMENTS = 128
_FOOTER_THREADS = 32


@dataclass(frozen=True)
class Unit:
    """What one reading task reads: a run of documents of one file."""

    number: int
    file: SourceFile
    row_group: int
    documents: int


class Source:
    """The documents a configuration names."""

    def __init__(self, config: SourceConfig) -> None:
        self._config = config
        self._fs, self._root = _filesystem(config)

    def list_files(self) -> list[SourceFile]:
        """The files, by path.

        Raises:
            SourceError: nothing there, or nothing readable.
        """
        uri = self._config.uri
        try:
            files = find_files(self._fs, self._root)
        except FileNotFoundError:
            raise SourceError(
                f"source.uri: expected a file, folder or glob, found nothing at {uri}.",
                "Check the path (and the bucket).",
            ) from None
        except Exception as error:
            fault = fault_of(error)
            if fault is None:
                raise
            what, remedy = FAULTS[fault]
            raise SourceError(
                f"source.uri: expected a readable place at {uri}, found {what} ({error!s:.160}).",
                remedy,
            ) from error
        if not files:
            raise SourceError(f"source.uri: expected Parquet files at {uri}, found none.")
        return files

    def units(self, files: Sequence[SourceFile]) -> list[Unit]:
        """The row groups in the order of the files, up to `limit` documents.

        Raises:
            SourceError: no documents, a file that is not Parquet, a configured column that is
                absent or of another type than in the first file.
        """
        units: list[Unit] = []
        left = self._config.limit
        types: dict[str, pa.DataType] | None = None
        with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
            footers = zip(files, pool.map(self._read_footer, files), strict=True)
            for file, (groups, metadata) in footers:
                types = types or metadata
                check_metadata(self._config.columns, metadata, file.path, types, files[0].path)
                for row_group, documents in enumerate(groups):
                    taken = documents if left is None else min(documents, left)
                    units.append(Unit(len(units), file, row_group, taken))
                    if left is not None:
                        left -= taken
                        if left == 0:
                            pool.shutdown(wait=False, cancel_futures=True)
                            return units
        if not units:
            raise SourceError(f"source.uri: expected documents at {self._config.uri}, found none.")
        return units

    def read(self, unit: Unit, start: int, stop: int) -> Iterator[pa.Table]:
        """Documents [start, stop) of a unit: doc_id, text, title, then the metadata columns.

        doc_id, text and title are strings (null where the source has null).

        Raises:
            SourceChangedError: the file is no longer the one that was listed.
            UnreadableUnitError: its bytes are damaged, or the store does not give them.
        """
        self._check_unchanged(unit.file)
        columns = self._config.columns
        wanted = [columns.id, columns.text, columns.title, *columns.metadata]
        names = list(dict.fromkeys(name for name in wanted if name))
        position = 0
        try:
            for batch in self._batches(unit, names):
                low, high = max(start - position, 0), min(stop - position, batch.num_rows)
                position += batch.num_rows
                if low < high:
                    yield self._canonical(pa.Table.from_batches([batch.slice(low, high - low)]))
                if position >= stop:
                    return
        except (OSError, pa.ArrowException) as error:  # pyarrow raises either for damaged pages
            reason = " ".join(str(error).split())
            raise UnreadableUnitError(
                f"{unit.file.path}, row group {unit.row_group}: cannot be read ({reason:.160}).",
                "Repair the file and start over with --fresh; if the store failed, run again.",
            ) from error

    def _batches(self, unit: Unit, names: list[str]) -> Iterator[pa.RecordBatch]:
        with self._fs.open(unit.file.path, "rb", **self._open_options) as opened:
            parquet = pq.ParquetFile(opened, pre_buffer=True)
            yield from parquet.iter_batches(
                _BATCH_DOCUMENTS, row_groups=[unit.row_group], columns=names
            )

    def no_documents(self, unit: Unit) -> pa.Table:
        """What `read` gives, with no rows: its types."""
        with self._fs.open(unit.file.path, "rb", **self._open_options) as opened:
            schema = pq.ParquetFile(opened).schema_arrow
        return self._canonical(schema.empty_table())

    def _canonical(self, table: pa.Table) -> pa.Table:
        columns = self._config.columns
        n = table.num_rows
        fields = {
            "doc_id": table[columns.id].cast(pa.string()),
            "text": table[columns.text].cast(pa.string()),
            "title": table[columns.title].cast(pa.string())
            if columns.title
            else pa.nulls(n, pa.string()),
        }
        return pa.table(fields | {name: table[name] for name in columns.metadata})

    def _read_footer(self, file: SourceFile) -> tuple[list[int], dict[str, pa.DataType]]:
        """Documents of each row group, and the types of the metadata columns."""
        try:
            with self._fs.open(file.path, "rb", **self._open_options) as opened:
                parquet = pq.ParquetFile(opened)
                metadata, schema = parquet.metadata, parquet.schema_arrow
        except (OSError, pa.ArrowException) as error:  # pyarrow raises either for a damaged footer
            reason = " ".join(str(error).split())
            raise SourceError(f"{file.path}: expected a Parquet file ({reason:.160}).") from None
        check_columns(self._config.columns, file.path, schema)
        groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        return groups, {name: schema.field(name).type for name in self._config.columns.metadata}

    def _check_unchanged(self, file: SourceFile) -> None:
        try:
            found = describe_file(self._fs, file.path)
        except FileNotFoundError:
            raise SourceChangedError(
                f"{file.path}: expected the file the plan pinned, found none.",
                "Restore it, or start over with --fresh.",
            ) from None
        if found != file:
            raise SourceChangedError(
                f"{file.path}: changed since the run was planned "
                f"({file.size} bytes, {file.etag} -> {found.size} bytes, {found.etag}).",
                "Start over with --fresh.",
            )

    @property
    def _open_options(self) -> dict[str, Any]:
        # pyarrow asks for whole column chunks; a read-ahead cache would fetch more than needed.
        return {} if is_local(self._fs) else {"cache_type": "none"}


def _filesystem(config: SourceConfig) -> tuple[Any, str]:
    uri = config.uri
    if "://" not in uri:
        uri = str(Path(uri).expanduser().absolute())
    try:
        fs, root = fsspec.core.url_to_fs(uri, **config.storage_options)
    except (ImportError, ValueError) as error:
        raise SourceError(f"source.uri: cannot read {config.uri} ({error}).") from None
    return fs, root
