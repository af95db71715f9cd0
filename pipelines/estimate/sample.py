"""A sample of a corpus: documents from places spread over it, and how much of it they are.

Reading is cheap and tokenising dear: more documents are read, so that their lengths are known, than
will be tokenised. Knows nothing of passages and tokens.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import UnreadableUnitError
from pipelines.config.sections import SourceConfig, absolute_uri
from pipelines.index.schemas import RejectCode
from pipelines.source.formats.base import Access, DocumentBatch, compression_of, is_damage
from pipelines.source.formats.parquet_files import ChunkSize, text_sizes
from pipelines.source.formats.registry import FORMATS
from pipelines.source.listing import is_http
from pipelines.source.source import Source
from pipelines.source.units import SourceFile, Unit

_FOOTERS = 256
_SIZE_THREADS = 32
_UNKNOWN_BYTES = 64 << 20  # a guess; what a server does not say of any file


@dataclass(frozen=True)
class UnitSizes:
    """Of each unit, up to a limit on documents where that is known."""

    text: np.ndarray
    """float64: bytes; of Parquet the encoded text column, else the file as it is stored."""
    fetched: np.ndarray
    """float64: bytes that have to be fetched to read any of it (Parquet), else 0."""
    is_dictionary: np.ndarray
    """bool: of Parquet; what is encoded tells little of the text."""
    unknown: int
    """Units of files whose size the server does not say: a mean or a guess."""


def open_access(config: SourceConfig) -> Access:
    """The store a source reads from."""
    uri = absolute_uri(config.uris[0])
    return Access(fsspec.core.url_to_fs(uri, **config.storage_options)[0])


def unit_sizes(config: SourceConfig, access: Access, units: Sequence[Unit]) -> UnitSizes:
    """The sizes of units: a look at 256 footers at most, the other files' are in proportion."""
    if units[0].pieces[0].row_group is not None:
        return _row_group_sizes(config, access, units)
    text = np.array([_stored_bytes(unit) for unit in units], dtype=np.float64)
    is_unknown = np.isnan(text)
    guess = text[~is_unknown].mean() if not is_unknown.all() else _UNKNOWN_BYTES
    return UnitSizes(
        text=np.where(is_unknown, guess, text),
        fetched=np.zeros(len(units)),
        is_dictionary=np.zeros(len(units), bool),
        unknown=int(is_unknown.sum()),
    )


def _stored_bytes(unit: Unit) -> float:
    pieces = unit.pieces
    if pieces[0].documents is not None:  # a document a file
        pieces = pieces[: unit.documents]
    if any(piece.file.size < 0 for piece in pieces):
        return float("nan")
    return float(sum(piece.stop - piece.start for piece in pieces))


def _row_group_sizes(config: SourceConfig, access: Access, units: Sequence[Unit]) -> UnitSizes:
    files = list(dict.fromkeys(unit.pieces[0].file for unit in units))
    looked_at = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, _FOOTERS).astype(int))]

    def look(file: SourceFile) -> list[ChunkSize]:
        return text_sizes(access, file, config.columns.text)

    with ThreadPoolExecutor(_SIZE_THREADS) as pool:
        groups = dict(zip(looked_at, pool.map(look, looked_at), strict=True))
    chunks = [chunk for sizes in groups.values() for chunk in sizes]
    stored = max(sum(file.size for file in looked_at), 1)
    encoded = sum(chunk.encoded for chunk in chunks) / stored
    compressed = sum(chunk.compressed for chunk in chunks) / stored
    most_are = 2 * sum(chunk.is_dictionary for chunk in chunks) > len(chunks)
    rows_in = _rows(units)

    def size_of(unit: Unit) -> tuple[float, float, bool]:
        piece = unit.pieces[0]
        rows = piece.documents or 0
        share = (unit.documents or 0) / max(rows, 1)
        if piece.file in groups:
            chunk = groups[piece.file][piece.row_group or 0]
            return chunk.encoded * share, chunk.compressed, chunk.is_dictionary
        size = piece.file.size * rows / max(rows_in[piece.file], 1)
        return encoded * size * share, compressed * size, most_are

    text, fetched, is_dictionary = zip(*map(size_of, units), strict=True)
    return UnitSizes(np.array(text, float), np.array(fetched, float), np.array(is_dictionary), 0)


def _rows(units: Iterable[Unit]) -> Mapping[SourceFile, int]:
    rows: dict[SourceFile, int] = {}
    for unit in units:
        piece = unit.pieces[0]
        rows[piece.file] = rows.get(piece.file, 0) + (piece.documents or 0)
    return rows


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


_PLACES = 32
_MOST_PLACES = 256  # of small files; each is a request or two to a store
_FEWEST_PLACES = 4
_THREADS = 16


@dataclass(frozen=True)
class Budget:
    """How much is looked at; about so much, since documents are read whole."""

    documents: int = 2_000
    """Tokenised."""
    characters: int = 3_000_000
    """Of text tokenised."""
    read_bytes: int = 16 << 20
    """Of files; of Parquet: of text."""
    compressed_bytes: int = 6 << 20
    """Of compressed files."""
    fetched_bytes: int = 256 << 20
    """Of Parquet's column chunks, which are fetched whole whatever is read of them."""


@dataclass(frozen=True)
class CorpusSample:
    """The documents that were read, in plan order."""

    documents: DocumentBatch
    """Their texts are cut at `longest` characters."""
    characters: np.ndarray
    """int64: of each document's whole text; 0 where there is none."""
    weights: np.ndarray
    """float64: how many documents of the corpus each stands for."""
    total_documents: int | None
    """In the corpus; None where only reading tells."""
    shares: np.ndarray
    """float64: of each unit in the corpus, by bytes of text."""
    units_read: int
    units_of_unknown_size: int
    is_whole: bool
    """It is the corpus."""


def take_sample(
    config: SourceConfig, source: Source, units: Sequence[Unit], budget: Budget, longest: int
) -> CorpusSample:
    """Read from 32 places (up to 256 small files) evenly spread over the corpus.

    What is within the budget is read whole. What is damaged is left out.

    Raises:
        SourceError: a file changed since it was listed, or the store fails.
    """
    access = open_access(config)
    sizes = unit_sizes(config, access, units)
    is_whole = _fits(config, units, sizes, budget)
    if is_whole:
        known = zip(units, sizes.text.tolist(), strict=True)
        places = [Place(unit, size, stands_for=size) for unit, size in known]
    elif _is_document_a_file(units):
        places = _files(units, sizes, budget)
    else:
        places = list(_places(access, units, sizes, budget))
    reader = SampleReader(config, source, access, longest)
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(reader.read, places))
    read = sum(each.documents for each in found)
    of_unit = [unit.documents for unit in units]
    total = read if is_whole else None if None in of_unit else sum(filter(None, of_unit))
    weights = np.concatenate([_weights(*each) for each in zip(places, found, strict=True)])
    if total is not None and units[0].pieces[0].documents is None and read:
        weights *= total / weights.sum()  # cut by a limit: sizes are those of whole units
    return CorpusSample(
        documents=joined([source.no_documents(units[0]), *(b for r in found for b in r.batches)]),
        characters=np.concatenate([each.characters for each in found]),
        weights=weights,
        total_documents=total,
        shares=sizes.text / max(sizes.text.sum(), 1.0),
        units_read=len({place.unit.number for place in places}),
        units_of_unknown_size=sizes.unknown,
        is_whole=is_whole and not any(each.is_broken for each in found),
    )


def _weights(place: Place, found: Read) -> np.ndarray:
    """Equal: a place stands for so much of the corpus (Hansen and Hurwitz 1943)."""
    is_all = place.stands_for == found.size  # also where both are 0
    weight = 1.0 if is_all else place.stands_for / max(found.size, 1.0)
    return np.full(found.documents, weight)


def _fits(config: SourceConfig, units: Sequence[Unit], sizes: UnitSizes, budget: Budget) -> bool:
    if sum(len(unit.pieces) for unit in units) > _MOST_PLACES:
        return False
    if config.limit is not None and config.limit <= budget.documents:
        return True  # where files do not tell, so many were read already to be counted
    most = _most(units, budget)
    return bool(sizes.text.sum() <= most and sizes.fetched.sum() <= budget.fetched_bytes)


def _most(units: Sequence[Unit], budget: Budget) -> int:
    is_compressed = any(compression_of(unit.pieces[0].file.path) for unit in units)
    return budget.compressed_bytes if is_compressed else budget.read_bytes


def _count(most: float, mean: float) -> int:
    return int(np.clip(most / max(mean, 1.0), _PLACES, _MOST_PLACES))


def _places(
    access: Access, units: Sequence[Unit], sizes: UnitSizes, budget: Budget
) -> Iterator[Place]:
    """At equal distances in bytes."""
    most, total = _most(units, budget), float(sizes.text.sum())
    count = _count(most, total / len(units))
    if sizes.fetched.any():
        affordable = int(budget.fetched_bytes / sizes.fetched.mean())
        count = int(np.clip(affordable, _FEWEST_PLACES, count))
    share, distance = max(most // count, 1), total / count
    ends = np.cumsum(sizes.text)
    points = (np.arange(count) + 0.5) * distance
    at = np.minimum(np.searchsorted(ends, points, side="right"), len(units) - 1)
    for number in np.unique(at).tolist():
        unit, size = units[number], float(sizes.text[number])
        offsets = (points[at == number] - (ends[number] - size)).tolist()
        if _has_lines(unit, access):
            for offset in offsets:
                begin = int(max(min(offset, size - share), 0))
                yield Place(unit, size, distance, min(share, int(size)), offset=begin)
        else:
            is_dictionary = bool(sizes.is_dictionary[number])
            yield Place(unit, size, distance * len(offsets), share * len(offsets), is_dictionary)


def _is_document_a_file(units: Sequence[Unit]) -> bool:
    first = units[0].pieces[0]
    return first.documents is not None and first.row_group is None


def _files(units: Sequence[Unit], sizes: UnitSizes, budget: Budget) -> list[Place]:
    """Whole files, each as likely as any other."""
    total = float(sizes.text.sum())
    files = [(unit, piece) for unit in units for piece in unit.pieces[: unit.documents]]
    count = min(_count(_most(units, budget), total / len(files)), len(files))
    chosen = [files[i] for i in ((np.arange(count) + 0.5) * len(files) / count).astype(int)]
    found = [float(max(piece.file.size, 0)) for _, piece in chosen]
    return [
        Place(replace(unit, pieces=(piece,), documents=1), size, size * total / max(sum(found), 1))
        for (unit, piece), size in zip(chosen, found, strict=True)
    ]


def _has_lines(unit: Unit, access: Access) -> bool:
    """It can be read from any byte on."""
    file = unit.pieces[0].file
    is_plain = unit.format in ("jsonl", "lines") and not compression_of(file.path)
    return is_plain and file.size > 0 and access.gives_ranges(file)
