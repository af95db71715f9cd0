"""CSV and TSV with a header line; read whole, since a quoted field may hold line ends."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterable, Iterator

import pyarrow as pa

from actors.errors import SourceError
from pipelines.config.sections import SourceConfig
from pipelines.source.formats.base import (
    Access,
    DocumentBatch,
    FileFacts,
    SourceRow,
    check_present,
    derived_id,
    to_batch,
    to_batches,
)
from pipelines.source.units import FileRange, SourceFile

# A field may be a whole book, but a quote that is never closed must not take in a whole disk.
csv.field_size_limit(128 << 20)

_NO_ROW: tuple[int, list[str] | str] = (0, [])


class CsvFiles:
    """One document a record; fields are strings, an empty one is an empty string."""

    def __init__(self, config: SourceConfig, delimiter: str) -> None:
        self._config = config
        self._delimiter = config.csv.delimiter or delimiter

    def inspect(self, access: Access, file: SourceFile, name: str) -> FileFacts:
        """One piece; the fields of the header."""
        piece = FileRange(file, name, 0, file.size)
        try:
            _, header = next(self._rows(access, piece), _NO_ROW)
        except OSError:  # damaged: for the run to find, and to name
            return FileFacts([piece], None)
        if isinstance(header, str):
            raise SourceError(f"{file.path}: expected a header line ({header}).")
        if not header:
            return FileFacts([piece], None)
        check_present(self._config, dict.fromkeys(header), file.path)
        twice = sorted({name for name in header if header.count(name) > 1})
        columns = self._config.columns
        for wanted in (columns.id, columns.text, columns.title, *columns.copied):
            if wanted in twice:
                raise SourceError(f"{file.path}: expected one column {wanted!r}, found several.")
        return FileFacts([piece], dict.fromkeys(header, pa.string()))

    def read(self, access: Access, piece: FileRange) -> Iterator[DocumentBatch]:
        """One document a record."""
        yield from to_batches(self._records(access, piece), self._config.columns.copied)

    def no_documents(self, access: Access, piece: FileRange) -> DocumentBatch:
        """Strings, all of them."""
        return to_batch([], self._config.columns.copied)

    def _records(self, access: Access, piece: FileRange) -> Iterator[SourceRow]:
        columns = self._config.columns
        rows = self._rows(access, piece)
        _, header = next(rows, _NO_ROW)
        index = {name: i for i, name in enumerate(header)}
        for position, (line, row) in enumerate(rows):
            derived = None if columns.id else derived_id(piece, position)
            if isinstance(row, str):
                yield SourceRow(derived, fault=("bad_record", f"line {line}: {row}"))
                continue
            if len(row) != len(header):
                detail = f"line {line}: expected {len(header)} fields, found {len(row)}"
                yield SourceRow(derived, fault=("bad_record", detail))
                continue
            yield SourceRow(
                row[index[columns.id]] if columns.id else derived,
                row[index[columns.text]],
                row[index[columns.title]] if columns.title else None,
                tuple(row[index[name]] for name in columns.copied),
            )

    def _rows(self, access: Access, piece: FileRange) -> Iterator[tuple[int, list[str] | str]]:
        """(number of its last line, fields), or what is wrong instead of fields; no blank lines."""
        quote = self._config.csv.quote
        with (
            access.open_stream(piece.file) as stream,
            # What does not decode shows as lone surrogates in its own field only.
            io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="") as text,
        ):
            feed = _Feed(text)
            reader = csv.reader(
                feed,
                delimiter=self._delimiter,
                quotechar=quote,
                quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
                strict=True,
            )
            while True:
                feed.taken.clear()
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    # A quote that is never closed takes in the records after it: only its own line
                    # is bad, the others are read again.
                    feed.give_back(len(feed.taken) - 1)
                    yield feed.number, str(error)
                    continue
                if row:
                    yield feed.number, row


class _Feed:
    """Lines for a CSV reader, of which it can give some back."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self._again: deque[str] = deque()
        self.taken: list[str] = []
        self.number = 0

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.taken.append(line)
        self.number += 1
        return line

    def give_back(self, count: int) -> None:
        """The last `count` lines come again."""
        if count > 0:
            self._again.extendleft(reversed(self.taken[-count:]))
            self.number -= count
