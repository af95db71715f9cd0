"""What formats are given and give: access to a store, pieces of files, batches of documents."""

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
_BATCH_CHARACTERS = 8 << 20  # documents of any length: a batch is bounded by both
_BUFFER_BYTES = 1 << 20
_BLOCK_BYTES = 8 << 20
_DECOMPRESSED_BYTES = 4 << 10

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}


@dataclass(frozen=True)
class FileFacts:
    """What a look at a file tells before it is read."""

    pieces: list[FileRange]
    present: Mapping[str, pa.DataType] | None
    """The fields it has by name (of the first records, where each names its own), with their types
    in the index; None where it does not tell."""


class SourceRow(NamedTuple):
    """One document of a format that is read row by row."""

    doc_id: str | None
    text: str | None = None
    title: str | None = None
    metadata: tuple[str | None, ...] = ()
    fault: tuple[RejectCode, str] | None = None
    """Why it is not a document: reject code and detail."""


@dataclass(frozen=True)
class DocumentBatch:
    """Consecutive documents."""

    table: pa.Table
    """doc_id, text, title (strings), then the metadata columns."""
    faults: Mapping[int, tuple[RejectCode, str]] = field(default_factory=dict)
    """Row -> why it is not a document."""

    def slice(self, low: int, high: int) -> DocumentBatch:
        """Rows [low, high)."""
        kept = {row - low: fault for row, fault in self.faults.items() if low <= row < high}
        return DocumentBatch(self.table.slice(low, high - low), kept)


@dataclass(frozen=True)
class Access:
    """Opens files of one store."""

    fs: Any

    def open(self, file: SourceFile) -> Any:
        """For a reader that asks for what it needs (Parquet: whole column chunks)."""
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
        """For reading from some place on; decompressed where the name says that it is compressed.

        Only from the beginning where the store does not give ranges.

        Raises:
            OSError: the compressed bytes are damaged or end too early (when they are read).
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
        """Whether the store gives a part of a file; not every HTTP server does, or says so."""
        if not is_http(self.fs):
            return True
        return fetched(lambda: self._gave_ranges(file))

    def _gave_ranges(self, file: SourceFile) -> bool:
        with self.fs.open(file.path, "rb", cache_type="none") as opened:
            try:
                opened.seek(1)
                opened.read(1)
            except ValueError:  # what fsspec says of such a server
                return False
        return True

    def _steady(self, file: SourceFile, **options: Any) -> SteadyFile:
        stream = options.get("block_size") == 0
        opener = partial(self.fs.open, file.path, "rb", **options)
        return SteadyFile(opener, fetched, stream=stream)


class _Decompressed(io.RawIOBase):
    """Reads little at a time: a read that comes to damaged bytes loses what it had until there."""

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
    """Documents in files of one kind."""

    def inspect(self, access: Access, file: SourceFile, name: str) -> FileFacts:
        """A look at a file: its pieces and fields; `name` is the file's in ids.

        Raises:
            SourceError: it is not of this format, or lacks a configured column.
        """

    def read(self, access: Access, piece: FileRange) -> Iterator[DocumentBatch]:
        """The documents of a piece, in order.

        Raises:
            OSError, pa.ArrowException: its bytes are damaged.
        """

    def no_documents(self, access: Access, piece: FileRange) -> DocumentBatch:
        """What `read` gives, with no rows: its types."""


class RecordFiles(ABC):
    """A `Format` that is read record by record; its fields are strings."""

    def __init__(self, config: SourceConfig) -> None:
        self._config, self._columns = config, config.columns

    def inspect(self, access: Access, file: SourceFile, name: str) -> FileFacts:
        """The pieces, and the fields of the first records."""
        pieces = self._pieces(access, file, name)
        try:
            fields = self._fields(access, pieces[0])
        except OSError:  # damaged: for the run to find, and to name
            fields = None
        return FileFacts(pieces, None if fields is None else dict.fromkeys(fields, pa.string()))

    def read(self, access: Access, piece: FileRange) -> Iterator[DocumentBatch]:
        """One document a record."""
        return to_batches(self._records(access, piece), self._columns.copied)

    def no_documents(self, access: Access, piece: FileRange) -> DocumentBatch:
        """Strings, all of them."""
        return to_batch([], self._columns.copied)

    def _pieces(self, access: Access, file: SourceFile, name: str) -> list[FileRange]:
        return [FileRange(file, name, 0, file.size)]

    def _fields(self, access: Access, piece: FileRange) -> Iterable[str] | None:
        """Plain text has a text and, from its place, an id: under whatever names."""
        return filter(None, (self._columns.id, self._columns.text))

    @abstractmethod
    def _records(self, access: Access, piece: FileRange) -> Iterator[SourceRow]: ...


def compression_of(path: str) -> str | None:
    """The codec a name ends with."""
    name = name_in(path).lower()
    return next((codec for end, codec in COMPRESSIONS.items() if name.endswith(end)), None)


def is_damage(error: OSError) -> bool:
    """Whether bytes do not decompress (pyarrow's error has no number); else a store failed."""
    return error.errno is None


def derived_id(piece: FileRange, position: int) -> str:
    """The id of a document that has none: where it is."""
    return f"{piece.name}:{position}"


def to_batches(records: Iterable[SourceRow], metadata: Sequence[str]) -> Iterator[DocumentBatch]:
    """Records as batches, bounded by documents and by characters."""
    pending: list[SourceRow] = []
    characters = 0
    try:
        for record in records:
            pending.append(record)
            characters += len(record.text or "")
            if len(pending) == BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
                yield to_batch(pending, metadata)
                pending, characters = [], 0
    except OSError:  # what comes before the damage is good
        if pending:
            yield to_batch(pending, metadata)
        raise
    if pending:
        yield to_batch(pending, metadata)


def to_batch(records: Sequence[SourceRow], metadata: Sequence[str]) -> DocumentBatch:
    """One batch; a string that is not Unicode (bytes that did not decode, lone surrogates) is a
    fault of its record.
    """
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
    """Check that every configured column is among those present, once.

    Raises:
        SourceError: naming the key, the place, and what it has instead.
    """
    for key, name in config.columns.by_key.items():
        if name is None:
            continue
        if name not in present:
            found = ", ".join(list(present)[:30]) or "none"
            remedy = ""
            if key == "id":
                remedy = (
                    "Where there is none: source.columns.id=null takes ids from file and position."
                )
            raise SourceError(
                f"source.columns.{key}: expected a column {name!r} in {where}, found {found}.",
                remedy,
            )
        if list(present).count(name) > 1:
            raise SourceError(f"{where}: expected one column {name!r}, found several.")
