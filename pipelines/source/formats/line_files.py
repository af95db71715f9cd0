"""Reads text files line by line: JSON lines, and plain text with one document per line.

An uncompressed file is read in byte ranges: a line belongs to the range in which it begins. A
compressed file is read whole. Blank lines are skipped.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from actors.errors import SourceError
from pipelines.source.formats.base import Access, RecordFiles, SourceRow, compression_of, derived_id
from pipelines.source.units import FileRange, SourceFile

RANGE_BYTES = 64 << 20

_SAMPLE_LINES = 100
_SAMPLE_BYTES = 256 << 10


class TextLines(RecordFiles):
    """Plain text with one document per line; the id contains the byte offset of the line."""

    def _pieces(self, access: Access, file: SourceFile, name: str) -> list[FileRange]:
        size = file.size
        if size <= RANGE_BYTES or compression_of(file.path) or not access.gives_ranges(file):
            return super()._pieces(access, file, name)  # also if the size is UNKNOWN_SIZE
        starts = range(0, size, RANGE_BYTES)
        return [FileRange(file, name, at, min(at + RANGE_BYTES, size)) for at in starts]

    def _records(self, access: Access, piece: FileRange) -> Iterator[SourceRow]:
        return (self._record(piece, *line) for line in lines(access, piece))

    def _record(self, piece: FileRange, offset: int, line: bytes) -> SourceRow:
        return SourceRow(derived_id(piece, offset), line.decode("utf-8", "surrogateescape"))


class JsonLines(TextLines):
    """JSON lines: one object per line. A column may be a dotted path into the object."""

    def _fields(self, access: Access, piece: FileRange) -> Iterable[str] | None:
        names: dict[str, None] | None = None
        paths = [path for path in self._columns.by_key.values() if path]
        with suppress(OSError):  # damaged: the run reports it when it reads the unit
            for number, (offset, line) in enumerate(lines(access, piece)):
                if number == 0:
                    _refuse_one_value(line.strip(), piece.file.path)
                if number == _SAMPLE_LINES or offset > _SAMPLE_BYTES:
                    break
                value = _parsed(line)
                if isinstance(value, dict):
                    inside = (path for path in paths if _at(value, path) is not _ABSENT)
                    names = (names or {}) | dict.fromkeys([*value, *inside])
        return names

    def _record(self, piece: FileRange, offset: int, line: bytes) -> SourceRow:
        columns = self._columns
        derived = None if columns.id else derived_id(piece, offset)
        value = _parsed(line)
        if isinstance(value, str):
            return SourceRow(derived, fault=("bad_record", f"byte {offset}: {value}"))
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
            # Only the text is required here; rows.py decides whether the others may be absent.
            if isinstance(found, str | None) or (found is _ABSENT and name != columns.text):
                continue
            what = "no such field" if found is _ABSENT else type(found).__name__
            detail = f"byte {offset}: {name}: expected a string, found {what}"
            return SourceRow(doc_id, fault=("bad_record", detail))
        title = _as_text(_at(value, columns.title)) if columns.title else None
        return SourceRow(
            doc_id, text, title, tuple(_as_text(_at(value, name)) for name in columns.copied)
        )


def lines(access: Access, piece: FileRange) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, line) for each line that begins in the piece, without blank lines.

    Offsets refer to the decompressed file. Line ends and a byte order mark are removed.
    """
    with access.open_stream(piece.file) as stream:
        at = piece.start
        if at:
            stream.seek(at - 1)
            at += len(stream.readline()) - 1  # the rest of a line that begins before the piece
        to_the_end = piece.stop >= piece.file.size  # decompressed offsets may exceed the size
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
    """Raise SourceError if the first line shows that the file is one JSON value, not JSON lines."""
    if line.startswith(b"["):
        found, remedy = "an array", "jq -c '.[]' array.json > lines.jsonl"
    elif line == b"{":
        found, remedy = "an object of several lines", "jq -c . objects.json > lines.jsonl"
    else:
        return
    raise SourceError(
        f"{path}: expected one JSON object per line, found {found}.", f"Rewrite it: {remedy}"
    )


_ABSENT: Any = object()


def _at(value: dict[str, Any], path: str) -> Any:
    """Return the value at a name or dotted path, `_ABSENT` if the object has no such value."""
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


def _parsed(line: bytes) -> dict[str, Any] | str:
    """Parse a line; return its object, or a message if the line is not a JSON object."""
    try:
        value = json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error!s:.100})"
    return value if isinstance(value, dict) else f"expected an object, found {type(value).__name__}"
