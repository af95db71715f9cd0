"""Reading for a sample: documents of a place in a corpus, and how much of the corpus they are.

What a place holds is measured as `corpus_sizes` measures units, so that the two may be divided.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import UnreadableUnitError
from pipelines.config_sections import SourceConfig
from pipelines.corpus_sizes import Beginnings
from pipelines.formats.base import Access, DocumentBatch, is_damage
from pipelines.formats.registry import FORMATS
from pipelines.schemas import RejectCode
from pipelines.source import Source, Unit

_LONGEST_BEGINNING = 64 << 20


@dataclass(frozen=True)
class Place:
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

    def read(self, place: Place) -> Read:
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

    def _first_rows(self, place: Place, most: int) -> Read:
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

    def _beginning(self, place: Place, most: int) -> Read:
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
