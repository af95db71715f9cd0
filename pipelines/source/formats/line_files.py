"""Text files read line by line: JSON lines, and plain text with a document a line.

A plain file is read in byte ranges: a line belongs to the range it begins in. A compressed one is
read whole. Blank lines are no documents.
"""

from __future__ import annotations

import codecs
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from actors.errors import SourceError
from pipelines.config.sections import SourceConfig
from pipelines.source.formats.base import (
    Access,
    DocumentBatch,
    FileFacts,
    SourceRow,
    compression_of,
    derived_id,
    to_batch,
    to_batches,
)
from pipelines.source.units import FileRange, SourceFile

RANGE_BYTES = 64 << 20

_SAMPLE_LINES = 100
_SAMPLE_BYTES = 256 << 10


class LineFiles(ABC):
    """A document a line."""

    def __init__(self, config: SourceConfig) -> None:
        self._config = config

    def inspect(self, access: Access, file: SourceFile, name: str) -> FileFacts:
        """Its byte ranges, and the fields of its first lines."""
        size = file.size
        pieces = [FileRange(file, name, 0, size)]  # also: a size the server did not say
        if size > RANGE_BYTES and not compression_of(file.path) and access.gives_ranges(file):
            starts = range(0, size, RANGE_BYTES)
            pieces = [FileRange(file, name, at, min(at + RANGE_BYTES, size)) for at in starts]
        return FileFacts(pieces, self._fields(access, pieces[0]))

    def read(self, access: Access, piece: FileRange) -> Iterator[DocumentBatch]:
        """One document a line."""
        records = (self._record(piece, *line) for line in lines(access, piece))
        yield from to_batches(records, self._config.columns.copied)

    def no_documents(self, access: Access, piece: FileRange) -> DocumentBatch:
        """Strings, all of them."""
        return to_batch([], self._config.columns.copied)

    @abstractmethod
    def _fields(self, access: Access, piece: FileRange) -> dict[str, pa.DataType] | None: ...

    @abstractmethod
    def _record(self, piece: FileRange, offset: int, line: bytes) -> SourceRow: ...


class JsonLines(LineFiles):
    """One JSON object a line; a column may be a dotted path into it."""

    def _fields(self, access: Access, piece: FileRange) -> dict[str, pa.DataType] | None:
        names: dict[str, None] = {}
        seen = 0
        try:
            for number, (offset, line) in enumerate(lines(access, piece)):
                if number == 0:
                    _refuse_one_value(line.strip(), piece.file.path)
                if number == _SAMPLE_LINES or offset > _SAMPLE_BYTES:
                    break
                value = _parsed(line)
                if isinstance(value, dict):
                    seen += 1
                    names |= dict.fromkeys(value)
                    names |= {p: None for p in self._paths if _at(value, p) is not _ABSENT}
        except OSError:  # damaged: for the run to find, and to name
            pass
        return dict.fromkeys(names, pa.string()) if seen else None

    @property
    def _paths(self) -> list[str]:
        columns = self._config.columns
        return [n for n in (columns.id, columns.text, columns.title, *columns.copied) if n]

    def _record(self, piece: FileRange, offset: int, line: bytes) -> SourceRow:
        columns = self._config.columns
        derived = None if columns.id else derived_id(piece, offset)
        value = _parsed(line)
        if not isinstance(value, dict):
            what = value if isinstance(value, str) else "not an object"
            return SourceRow(derived, fault=("bad_record", f"byte {offset}: {what}"))
        doc_id = derived if columns.id is None else _at(value, columns.id)
        if isinstance(doc_id, int) and not isinstance(doc_id, bool):
            doc_id = str(doc_id)
        if doc_id in (None, _ABSENT):
            return SourceRow(None, fault=("missing_id", f"byte {offset}"))
        if not isinstance(doc_id, str):
            found = type(doc_id).__name__
            detail = f"byte {offset}: {columns.id}: expected a string or an integer, found {found}"
            return SourceRow(None, fault=("bad_record", detail))
        text = _at(value, columns.text)
        for name in (columns.text, *columns.copied_strings):
            found = _at(value, name)
            # Without one of the others it may be a document: that is not for a format to say.
            if isinstance(found, str | None) or (found is _ABSENT and name != columns.text):
                continue
            what = "no such field" if found is _ABSENT else type(found).__name__
            detail = f"byte {offset}: {name}: expected a string, found {what}"
            return SourceRow(doc_id, fault=("bad_record", detail))
        title = _as_text(_at(value, columns.title)) if columns.title else None
        return SourceRow(
            doc_id, text, title, tuple(_as_text(_at(value, name)) for name in columns.copied)
        )


class TextLines(LineFiles):
    """Plain text, a document a line; its id is where it begins."""

    def _fields(self, access: Access, piece: FileRange) -> dict[str, pa.DataType] | None:
        return text_fields(self._config)

    def _record(self, piece: FileRange, offset: int, line: bytes) -> SourceRow:
        nothing = (None,) * len(self._config.columns.copied)
        text = line.decode("utf-8", "surrogateescape")
        return SourceRow(derived_id(piece, offset), text, None, nothing)


def text_fields(config: SourceConfig) -> dict[str, pa.DataType]:
    """Plain text has a text and, from its place, an id: under whatever names."""
    columns = config.columns
    return dict.fromkeys(filter(None, (columns.id, columns.text)), pa.string())


def lines(access: Access, piece: FileRange) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of each line that begins in the piece, without its end; blank ones left out.

    Offsets are of the decompressed file. A byte order mark is no part of the first line.
    """
    with access.open_stream(piece.file) as stream:
        at = piece.start
        if at:
            stream.seek(at - 1)
            at += len(stream.readline()) - 1  # the rest of a line that begins before
        to_the_end = piece.stop >= piece.file.size  # where compressed, offsets go beyond
        while to_the_end or at < piece.stop:
            line = stream.readline()
            if not line:
                return
            start, at = at, at + len(line)
            line = line.removeprefix(codecs.BOM_UTF8) if start == 0 else line
            line = line.rstrip(b"\r\n")
            if line.strip():
                yield start, line


def _refuse_one_value(line: bytes, path: str) -> None:
    """By its first line: a file that is one JSON value, not one a line."""
    if line.startswith(b"["):
        found, remedy = "an array", "jq -c '.[]' array.json > lines.jsonl"
    elif line == b"{":
        found, remedy = "an object of several lines", "jq -c . objects.json > lines.jsonl"
    else:
        return
    raise SourceError(
        f"{path}: expected one JSON object a line, found {found}.", f"Rewrite it: {remedy}"
    )


_ABSENT: Any = object()


def _at(value: dict[str, Any], path: str) -> Any:
    """The value under a name, or under a dotted path; `_ABSENT` where there is none."""
    if path in value:
        return value[path]
    found: Any = value
    for name in path.split("."):
        if not isinstance(found, dict) or name not in found:
            return _ABSENT
        found = found[name]
    return found


def _as_text(value: Any) -> str | None:
    if value is None or value is _ABSENT:
        return None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _parsed(line: bytes) -> Any:
    """The value of a JSON text; a str saying what is wrong where it is none or no object."""
    try:
        value = json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error!s:.100})"
    return value if isinstance(value, dict) else f"expected an object, found {type(value).__name__}"
