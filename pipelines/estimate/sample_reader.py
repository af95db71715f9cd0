"""Reads the places of a sample: whole units, first rows, or the beginnings of files.

What a place holds is measured in the same unit as `sample.unit_sizes`, so that sample size divided
by corpus size is a valid fraction.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import UnreadableUnitError
from pipelines.config.sections import SourceConfig
from pipelines.index.schemas import RejectCode
from pipelines.source.formats.base import Access, DocumentBatch, compression_of, is_damage
from pipelines.source.formats.registry import FORMATS
from pipelines.source.listing import is_http
from pipelines.source.source import Source
from pipelines.source.units import Unit


class Beginnings:
    """A store in which every file ends after its first bytes: between two records, where possible.

    `quote` is what may stand around line ends inside of a record (CSV).
    """

    protocol = "file"

    def __init__(self, fs: Any, most: int, quote: str | None = None) -> None:
        self.is_cut = False
        self._fs = fs
        self._most = most
        self._quote = (quote or "").encode()

    def open(self, path: str, mode: str = "rb") -> io.BytesIO:
        """The first bytes."""
        if is_http(self._fs):  # not every server gives a range
            with self._fs.open(path, mode, block_size=0) as stream:
                data = _read(stream, self._most + 1)
        else:
            data = self._fs.cat_file(path, start=0, end=self._most + 1)
        self.is_cut = len(data) > self._most
        if self.is_cut:
            data = data[: self._most]
            if not compression_of(path):
                data = self._whole_lines(data)
        return io.BytesIO(data)

    def _whole_lines(self, data: bytes) -> bytes:
        """Up to the last line end outside of quotes; all of it where there is none."""
        end = data.rfind(b"\n") + 1
        inside = data.count(self._quote, 0, end) % 2 if self._quote else 0
        while inside and end:
            start = data.rfind(b"\n", 0, end - 1) + 1
            inside = (inside + data.count(self._quote, start, end)) % 2
            end = start
        return data[:end] or data


def _read(stream: Any, size: int) -> bytes:
    """So many bytes, or all there are: one read of an HTTP stream gives what has arrived."""
    parts: list[bytes] = []
    while size > 0 and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


_LONGEST_BEGINNING = 64 << 20


@dataclass(frozen=True)
class SampleRange:
    """Where to read."""

    unit: Unit
    size: float
    """Of the unit, in the measure of `UnitSizes.text`."""
    stands_for: float
    """So much of the corpus, in the same measure."""
    most: int | None = None
    """Bytes to read; None: all of the unit."""
    is_dictionary: bool = False
    """Of Parquet: its text is encoded by a dictionary."""
    offset: int | None = None
    """In the unit, where it can be read from any line on; None: from its beginning."""


@dataclass(frozen=True)
class Read:
    """What came from one place."""

    batches: list[DocumentBatch]
    characters: np.ndarray
    text_bytes: int
    is_broken: bool
    """The unit cannot be read beyond."""
    size: float = 0.0
    """In the measure of `UnitSizes.text`."""

    @property
    def documents(self) -> int:
        """How many."""
        return len(self.characters)


class SampleReader:
    """Reads places of one source."""

    def __init__(self, config: SourceConfig, source: Source, access: Access, longest: int) -> None:
        self._config, self._source, self._access, self._longest = config, source, access, longest

    def read(self, place: SampleRange) -> Read:
        """The documents there, and how much they are."""
        unit = place.unit
        if place.most is None:
            return replace(self._collect(self._source.read(unit)), size=place.size)
        if unit.pieces[0].row_group is not None:
            return self._first_rows(place, place.most)
        if place.offset is not None:
            start = unit.pieces[0].start + place.offset
            lines = replace(unit.pieces[0], start=start, stop=start + place.most)
            found = self._collect(self._source.read(replace(unit, pieces=(lines,), documents=None)))
            return replace(found, size=place.most)
        return self._beginning(place, place.most)

    def _first_rows(self, place: SampleRange, most: int) -> Read:
        found, rows = self._collect(self._source.read(place.unit), most), place.unit.documents or 0
        n = found.documents
        if not n or n >= rows:
            return replace(found, size=place.size)
        encoded, by_rows = float(found.text_bytes + 4 * n), place.size * n / rows
        # Bytes, not rows, say how far this went, for lengths may change from the first row to the
        # last; but in a dictionary repeated texts take none. Chance alone is no repetition.
        noise = 2 * _variation(found.characters) / np.sqrt(n)
        repeats = place.is_dictionary and encoded > by_rows * (1 + noise)
        return replace(found, size=by_rows if repeats else encoded)

    def _beginning(self, place: SampleRange, most: int) -> Read:
        """Of a file that can only be read from its first byte on: further where that is nothing."""
        piece, name = place.unit.pieces[0], place.unit.format
        quote = self._config.csv.quote if name in ("csv", "tsv") else None
        while True:
            store = Beginnings(self._access.fs, most, quote)
            documents = FORMATS[name].make(self._config).read(Access(store), piece)
            found = self._collect(documents)
            if not store.is_cut:
                return replace(found, size=place.size)
            found = _without_torn(found)
            if found.documents or most >= _LONGEST_BEGINNING:
                break
            most *= 8
        # The document that is torn at the end is lost: as much of one as a place taken at random
        # lies behind its beginning (the inspection paradox: (1 + cv^2) / 2).
        lost = (1 + _variation(found.characters) ** 2) / 2
        return replace(found, size=most * found.documents / (found.documents + lost))

    def _collect(self, documents: Iterable[DocumentBatch], most: int | None = None) -> Read:
        """Up to so many bytes of text; texts are cut, so that memory is bounded."""
        batches: list[DocumentBatch] = []
        characters = [np.zeros(0, np.int64)]
        size, is_broken = 0, False
        try:
            for batch in documents:
                text = batch.table["text"]
                cut = pc.utf8_slice_codeunits(text, 0, self._longest)
                at = batch.table.column_names.index("text")
                batches.append(replace(batch, table=batch.table.set_column(at, "text", cut)))
                characters.append(pc.fill_null(pc.utf8_length(text), 0).to_numpy().astype(np.int64))
                size += pc.sum(pc.binary_length(text)).as_py() or 0
                if most is not None and size >= most:
                    break
        except UnreadableUnitError:
            is_broken = True
        except (OSError, pa.ArrowException) as error:  # of a file's beginning
            if isinstance(error, OSError) and not is_damage(error):
                raise
            is_broken = True
        return Read(batches, np.concatenate(characters), size, is_broken)


def _without_torn(found: Read) -> Read:
    """Less the faults at its end: there a record is torn."""
    if not found.documents:
        return found
    documents = joined(found.batches)
    n = found.documents
    while n and n - 1 in documents.faults:
        n -= 1
    return replace(found, batches=[documents.slice(0, n)], characters=found.characters[:n])


def _variation(values: np.ndarray) -> float:
    """Standard deviation over mean."""
    return float(values.std() / values.mean()) if len(values) and values.any() else 0.0


def joined(batches: Sequence[DocumentBatch]) -> DocumentBatch:
    """As one; one at least."""
    tables, first = [], 0
    faults: dict[int, tuple[RejectCode, str]] = {}
    for batch in batches:
        tables.append(batch.table)
        faults |= {first + row: fault for row, fault in batch.faults.items()}
        first += batch.table.num_rows
    return DocumentBatch(pa.concat_tables(tables), faults)
