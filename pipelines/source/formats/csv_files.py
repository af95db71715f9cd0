"""Reads CSV and TSV files with a header line, whole, because quoted fields may span lines."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator

from actors.errors import SourceError
from pipelines.config.sections import SourceConfig
from pipelines.source.formats.base import (
    Access,
    RecordFiles,
    SourceRow,
    check_present,
    derived_id,
)
from pipelines.source.units import FileRange

# A field may be a whole book, but an unclosed quote must not read a whole disk into memory.
csv.field_size_limit(128 << 20)

_NO_ROW: tuple[int, list[str] | str] = (0, [])


class CsvFiles(RecordFiles):
    """CSV: one document per record. Fields are strings; an empty field is an empty string."""

    def __init__(self, config: SourceConfig, delimiter: str) -> None:
        super().__init__(config)
        self._delimiter = config.csv.delimiter or delimiter

    def _fields(self, access: Access, piece: FileRange) -> list[str] | None:
        _, header = next(self._rows(access, piece), _NO_ROW)
        if isinstance(header, str):
            raise SourceError(f"{piece.file.path}: expected a header line ({header}).")
        if not header:
            return None
        check_present(self._config, header, piece.file.path)
        return header

    def _records(self, access: Access, piece: FileRange) -> Iterator[SourceRow]:
        columns = self._columns
        rows = self._rows(access, piece)
        _, header = next(rows, _NO_ROW)
        index = {name: i for i, name in enumerate(header)}
        for position, (line, row) in enumerate(rows):
            derived = None if columns.id else derived_id(piece, position)
            if isinstance(row, list) and len(row) != len(header):
                row = f"expected {len(header)} fields, found {len(row)}"
            if isinstance(row, str):
                yield SourceRow(derived, fault=("bad_record", f"line {line}: {row}"))
                continue
            yield SourceRow(
                row[index[columns.id]] if columns.id else derived,
                row[index[columns.text]],
                row[index[columns.title]] if columns.title else None,
                tuple(row[index[name]] for name in columns.copied),
            )

    def _rows(self, access: Access, piece: FileRange) -> Iterator[tuple[int, list[str] | str]]:
        """Yield (last line number, fields or error message) for each record; skip blank lines."""
        quote = self._config.csv.quote
        again: deque[str] = deque()
        taken: list[str] = []
        number = 0
        with (
            access.open_stream(piece.file) as stream,
            # Undecodable bytes become lone surrogates, which affect only their own field.
            io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="") as text,
        ):

            def lines() -> Iterator[str]:
                while line := again.popleft() if again else next(text, ""):
                    taken.append(line)
                    yield line

            while True:
                try:
                    for row in csv.reader(
                        lines(),
                        delimiter=self._delimiter,
                        quotechar=quote,
                        quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
                        strict=True,
                    ):
                        number += len(taken)
                        taken.clear()
                        if row:
                            yield number, row
                    return
                except csv.Error as error:
                    # An unclosed quote swallows the records after it. Only its own line is bad, so
                    # the later lines are parsed again.
                    again.extendleft(reversed(taken[1:]))
                    taken.clear()
                    number += 1
                    yield number, str(error)
