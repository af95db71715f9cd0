"""The interface of formats: access to a store, pieces of files, batches of documents."""

from __future__ import annotations

import io
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from actors.errors import SourceError
from pipelines.config.sections import SourceConfig
from pipelines.index.schemas import RejectCode
from pipelines.source.listing import is_http, is_local, name_in
from pipelines.source.units import FileRange, SourceFile
from pipelines.store.faults import SteadyFile, fetched
from pipelines.store.files import local_disk

BATCH_DOCUMENTS = 128
_BATCH_CHARACTERS = 8 << 20  # also bounds a batch, because documents may have any length
_BUFFER_BYTES = 1 << 20
_BLOCK_BYTES = 8 << 20
_DECOMPRESSED_BYTES = 4 << 10

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}


@dataclass(frozen=True)
class FileFacts:
    """The pieces and fields of a file, known before its documents are read."""

    pieces: list[FileRange]
    present: Mapping[str, pa.DataType] | None
    """Field names and their types in the index; None if the file does not name its fields. In
    formats where each record names its own fields, those of the first records."""


class SourceRow(NamedTuple):
    """One document of a format that is read row by row."""

    doc_id: str | None
    text: str | None = None
    title: str | None = None
    metadata: tuple[str | None, ...] = ()
    fault: tuple[RejectCode, str] | None = None
    """The reject code and detail if the row is not a valid document."""


@dataclass(frozen=True)
class DocumentBatch:
    """Consecutive documents."""

    table: pa.Table
    """doc_id, text, title (strings), then the metadata columns."""
    faults: Mapping[int, tuple[RejectCode, str]] = field(default_factory=dict)
    """Row -> reject code and detail, for rows that are not valid documents."""

    def slice(self, low: int, high: int) -> DocumentBatch:
        """Return rows [low, high)."""
        kept = {row - low: fault for row, fault in self.faults.items() if low <= row < high}
        return DocumentBatch(self.table.slice(low, high - low), kept)


@dataclass(frozen=True)
class Access:
    """Opens files of one store."""

    fs: Any

    def open(self, file: SourceFile) -> Any:
        """Open a file for a reader with random access (Parquet reads whole column chunks)."""
        if is_local(self.fs):
            return self.fs.open(file.path, "rb")
        if self.gives_ranges(file):
            return self._steady(file, cache_type="none")
        with local_disk(tempfile.gettempdir()), self._steady(file, block_size=0) as stream:
            copy = tempfile.TemporaryFile()  # noqa: SIM115  (for the caller to close)
            shutil.copyfileobj(stream, copy, _BLOCK_BYTES)
        copy.seek(0)
        return copy

    def open_stream(self, file: SourceFile) -> io.BufferedReader:
        """Open a file for sequential reading; decompress it if its name has such an extension.

        The stream is seekable only if the store supports range requests.

        Raises:
            OSError: the compressed bytes are damaged or truncated; raised while reading.
        """
        if is_local(self.fs):
            raw = self.fs.open(file.path, "rb")
        else:
            raw = self._steady(file, block_size=_BLOCK_BYTES if self.gives_ranges(file) else 0)
        codec = compression_of(file.path)
        if codec:
            raw = _Decompressed(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec))
        return io.BufferedReader(raw, _BUFFER_BYTES)

    def gives_ranges(self, file: SourceFile) -> bool:
        """Whether the store supports range requests; some HTTP servers do not."""
        if not is_http(self.fs):
            return True
        return fetched(lambda: self._gave_ranges(file))

    def _gave_ranges(self, file: SourceFile) -> bool:
        with self.fs.open(file.path, "rb", cache_type="none") as opened:
            try:
                opened.seek(1)
                opened.read(1)
            except ValueError:  # raised by fsspec if the server does not support ranges
                return False
        return True

    def _steady(self, file: SourceFile, **options: Any) -> SteadyFile:
        stream = options.get("block_size") == 0
        opener = partial(self.fs.open, file.path, "rb", **options)
        return SteadyFile(opener, fetched, stream=stream)


class _Decompressed(io.RawIOBase):
    """Decompresses in small reads: a read that fails also loses good bytes before the damage."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._stream.readinto(memoryview(buffer)[:_DECOMPRESSED_BYTES])  # type: ignore[no-any-return]

    def close(self) -> None:
        self._stream.close()
        super().close()


class Format(Protocol):
    """Reader for files of one kind."""

    def inspect(self, access: Access, file: SourceFile, name: str) -> FileFacts:
        """Return the pieces and fields of a file; `name`: the file's name in document ids.

        Raises:
            SourceError: the file has another format, or lacks a configured column.
        """

    def read(self, access: Access, piece: FileRange) -> Iterator[DocumentBatch]:
        """Yield the documents of a piece, in order.

        Raises:
            OSError, pa.ArrowException: the bytes are damaged.
        """

    def no_documents(self, access: Access, piece: FileRange) -> DocumentBatch:
        """Return an empty batch with the columns and types of `read`."""


class RecordFiles(ABC):
    """Base class of formats that are read record by record; all fields are strings."""

    def __init__(self, config: SourceConfig) -> None:
        self._config, self._columns = config, config.columns

    def inspect(self, access: Access, file: SourceFile, name: str) -> FileFacts:
        """Return the pieces, and the fields of the first records."""
        pieces = self._pieces(access, file, name)
        try:
            fields = self._fields(access, pieces[0])
        except OSError:  # damaged: the run reports it when it reads the unit
            fields = None
        return FileFacts(pieces, None if fields is None else dict.fromkeys(fields, pa.string()))

    def read(self, access: Access, piece: FileRange) -> Iterator[DocumentBatch]:
        """Yield one document for each record."""
        return to_batches(self._records(access, piece), self._columns.copied)

    def no_documents(self, access: Access, piece: FileRange) -> DocumentBatch:
        """Return an empty batch; all columns are strings."""
        return to_batch([], self._columns.copied)

    def _pieces(self, access: Access, file: SourceFile, name: str) -> list[FileRange]:
        return [FileRange(file, name, 0, file.size)]

    def _fields(self, access: Access, piece: FileRange) -> Iterable[str] | None:
        """Return the configured names of id and text, since plain text names no fields."""
        return filter(None, (self._columns.id, self._columns.text))

    @abstractmethod
    def _records(self, access: Access, piece: FileRange) -> Iterator[SourceRow]: ...


def compression_of(path: str) -> str | None:
    """Return the codec for the extension of a name, None if the file is not compressed."""
    name = name_in(path).lower()
    return next((codec for end, codec in COMPRESSIONS.items() if name.endswith(end)), None)


def is_damage(error: OSError) -> bool:
    """Whether decompression failed (pyarrow's error has no errno), rather than the store."""
    return error.errno is None


def derived_id(piece: FileRange, position: int) -> str:
    """Return an id made of file name and position, for a document without an id."""
    return f"{piece.name}:{position}"


def to_batches(records: Iterable[SourceRow], metadata: Sequence[str]) -> Iterator[DocumentBatch]:
    """Group records into batches, bounded by number of documents and by characters."""
    pending: list[SourceRow] = []
    characters = 0
    try:
        for record in records:
            pending.append(record)
            characters += len(record.text or "")
            if len(pending) == BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
                yield to_batch(pending, metadata)
                pending, characters = [], 0
    except OSError:  # the records before the damage are good
        if pending:
            yield to_batch(pending, metadata)
        raise
    if pending:
        yield to_batch(pending, metadata)


def to_batch(records: Sequence[SourceRow], metadata: Sequence[str]) -> DocumentBatch:
    """Make one batch. A record with a string that is not valid Unicode becomes a fault."""
    records = [_encodable(record) for record in records]
    rows = [
        (r.doc_id, r.text, r.title, *r.metadata) if not r.fault else (r.doc_id,) for r in records
    ]
    names = ["doc_id", "text", "title", *metadata]
    columns = [[row[i] if i < len(row) else None for row in rows] for i in range(len(names))]
    table = pa.table([pa.array(column, pa.string()) for column in columns], names=names)
    return DocumentBatch(table, {i: r.fault for i, r in enumerate(records) if r.fault})


def _encodable(record: SourceRow) -> SourceRow:
    values = (record.doc_id, record.text, record.title, *record.metadata)
    if all(map(_is_unicode, values)):
        return record
    doc_id = record.doc_id if _is_unicode(record.doc_id) else None
    return SourceRow(doc_id, fault=record.fault or ("bad_encoding", "not valid UTF-8"))


def _is_unicode(value: str | None) -> bool:
    if value is None or value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_present(config: SourceConfig, present: Collection[str], where: str) -> None:
    """Check that every configured column is present exactly once.

    Raises:
        SourceError: a column is absent or occurs several times.
    """
    for key, name in config.columns.by_key.items():
        if name is None:
            continue
        if name not in present:
            found = ", ".join(list(present)[:30]) or "none"
            remedy = ""
            if key == "id":
                remedy = (
                    "If there are no ids: source.columns.id=null makes them of file and position."
                )
            raise SourceError(
                f"source.columns.{key}: expected a column {name!r} in {where}, found {found}.",
                remedy,
            )
        if list(present).count(name) > 1:
            raise SourceError(f"{where}: expected one column {name!r}, found several.")
