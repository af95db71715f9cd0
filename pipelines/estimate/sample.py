"""Samples a corpus: documents from places spread over it, and the share they represent.

More documents are read, to know their lengths, than are tokenised, because tokenising is slower.
This module works on documents and bytes; it does not use passages or tokens.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import UnreadableUnitError
from pipelines.config.sections import SourceConfig, absolute_uri
from pipelines.source.formats.base import (
    BATCH_DOCUMENTS,
    Access,
    DocumentBatch,
    compression_of,
    is_damage,
)
from pipelines.source.formats.parquet_files import text_sizes
from pipelines.source.formats.registry import FORMATS
from pipelines.source.listing import is_http
from pipelines.source.source import Source
from pipelines.source.units import FileRange, Unit

_PLACES = 32
_MOST_PLACES = 256  # for small files; each costs one or two requests
_FEWEST_PLACES = 4
_THREADS = 16
_UNKNOWN_BYTES = 64 << 20  # a guess if the server reports no file size
_LONGEST_BEGINNING = 64 << 20


@dataclass(frozen=True)
class Budget:
    """The approximate limits of a sample; documents are always read whole."""

    documents: int = 2_000
    """Documents to tokenise."""
    text_bytes: int = 3_000_000
    """Bytes of text to tokenise."""
    read_bytes: int = 8 << 20
    """Stored bytes of files to read."""
    fetched_bytes: int = 256 << 20
    """Stored bytes of Parquet row groups, which are always fetched whole."""


@dataclass(frozen=True)
class CorpusSample:
    """The documents that were read, in plan order."""

    documents: DocumentBatch
    """The documents, with texts cut at `longest` characters."""
    lengths: np.ndarray
    """int64: bytes of each document's uncut text, 0 without text."""
    weights: np.ndarray
    """float64: number of documents of the corpus that each document represents."""
    total_documents: int
    """Number of documents in the corpus."""
    is_counted: bool
    """Whether `total_documents` is exact."""
    shares: np.ndarray
    """float64: share of each unit in the corpus, by stored bytes."""
    units_read: int
    units_of_unknown_size: int
    is_whole: bool
    """Whether the sample is the whole corpus."""


def take_sample(
    config: SourceConfig, source: Source, units: Sequence[Unit], budget: Budget, longest: int
) -> CorpusSample:
    """Read documents at 32 places (up to 256 for small files) evenly spread over the corpus.

    A corpus within the budget is read whole. Damaged documents are left out.

    Raises:
        SourceError: a file changed since it was listed, or the store fails.
    """
    uri = absolute_uri(config.uris[0])
    access = Access(fsspec.core.url_to_fs(uri, **config.storage_options)[0])
    files = [(unit, piece) for unit in units for piece in unit.pieces[: unit.documents]]
    owners = np.repeat(np.arange(len(units)), [len(u.pieces[: u.documents]) for u in units])
    sizes = _stored_bytes(files)
    is_unknown = sizes < 0
    guess = _UNKNOWN_BYTES if is_unknown.all() else sizes[~is_unknown].mean()
    sizes = np.where(is_unknown, guess, sizes)
    # A small limit was already counted by reading if files do not store their number of documents.
    is_small = config.limit is not None and config.limit <= budget.documents
    is_whole = len(files) <= _MOST_PLACES and (is_small or sizes.sum() <= budget.read_bytes)
    if is_whole:
        known = zip(files, sizes.tolist(), strict=True)
        places = [_Place(_alone(*file), size, size, size) for file, size in known]
    else:
        places = list(_places(access, files, sizes, budget))
    reader = _Reader(config, source, access, longest)
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(reader.read, places))
    weights = np.array([weight for read, weight in found for _ in read.lengths], np.float64)
    counts = [unit.documents for unit in units]
    total = len(weights) if is_whole else None if None in counts else sum(filter(None, counts))
    if total is not None and units[0].pieces[0].documents is None and len(weights):
        weights *= total / weights.sum()  # a limit cuts units, but their sizes are uncut
    batches = [batch for read, _ in found for batch in read.batches]
    return CorpusSample(
        documents=_joined([source.no_documents(units[0]), *batches]),
        lengths=np.array([length for read, _ in found for length in read.lengths], np.int64),
        weights=weights,
        total_documents=round(float(weights.sum())) if total is None else total,
        is_counted=total is not None,
        shares=np.bincount(owners, sizes, len(units)) / max(sizes.sum(), 1.0),
        units_read=len({place.unit.number for place in places}),
        units_of_unknown_size=len(np.unique(owners[is_unknown])),
        is_whole=is_whole and not any(read.is_broken for read, _ in found),
    )


def _stored_bytes(files: Sequence[tuple[Unit, FileRange]]) -> np.ndarray:
    """Return float64: stored bytes of each piece within the run, negative if unknown."""
    if files and files[0][0].format == "parquet":
        rows = {piece.file: piece.stop for _, piece in files}
        return np.array([p.file.size * (unit.documents or 0) / rows[p.file] for unit, p in files])
    return np.array([piece.stop - piece.start for _, piece in files], np.float64)


def _alone(unit: Unit, piece: FileRange) -> Unit:
    """Return a unit with only one of its text files; other units are returned unchanged."""
    return replace(unit, pieces=(piece,), documents=1) if unit.format == "text" else unit


@dataclass(frozen=True)
class _Place:
    """A place to read at; all sizes are stored bytes."""

    unit: Unit
    size: float
    stands_for: float
    """Bytes of the corpus that the place represents."""
    most: float
    """Bytes to read, from the beginning of the unit."""


def _places(
    access: Access, files: Sequence[tuple[Unit, FileRange]], sizes: np.ndarray, budget: Budget
) -> Iterator[_Place]:
    """Yield places at equal distances in bytes."""
    mean = max(float(sizes.mean()), 1.0)
    count = int(np.clip(budget.read_bytes / mean, _PLACES, _MOST_PLACES))
    if files[0][0].format == "parquet":
        count = int(np.clip(budget.fetched_bytes / mean, _FEWEST_PLACES, count))
    share, distance = max(budget.read_bytes // count, 1), float(sizes.sum()) / count
    ends = np.cumsum(sizes)
    points = (np.arange(count) + 0.5) * distance
    at = np.minimum(np.searchsorted(ends, points, side="right"), len(files) - 1)
    for number in np.unique(at).tolist():
        unit, size = _alone(*files[number]), float(sizes[number])
        offsets = points[at == number] - (ends[number] - size)
        if len(offsets) * share >= size or not _has_lines(unit, access):
            yield _Place(unit, size, distance * len(offsets), share * len(offsets))
            continue
        for offset in np.minimum(offsets, size - share).astype(int).tolist():
            start = unit.pieces[0].start + offset
            lines = replace(unit.pieces[0], start=start, stop=start + share)
            yield _Place(replace(unit, pieces=(lines,), documents=None), share, distance, share)


def _has_lines(unit: Unit, access: Access) -> bool:
    """Return whether a file can be read from any byte on."""
    file = unit.pieces[0].file
    is_plain = unit.format in ("jsonl", "beir", "lines") and not compression_of(file.path)
    return is_plain and file.size > 0 and access.gives_ranges(file)


@dataclass
class _Read:
    """The documents read at one place."""

    batches: list[DocumentBatch]
    lengths: list[int]
    """Bytes of each uncut text."""
    is_broken: bool = False
    """Whether the rest of the unit is unreadable."""


class _Reader:
    """A reader of places of one source."""

    def __init__(self, config: SourceConfig, source: Source, access: Access, longest: int) -> None:
        self._config, self._source, self._access, self._longest = config, source, access, longest

    def read(self, place: _Place) -> tuple[_Read, float]:
        """Return the documents of a place, and how many documents of the corpus each represents."""
        if place.most >= place.size or place.unit.format == "text":
            found, share = self._collect(self._source.read(place.unit)), 1.0
        elif place.unit.format == "parquet":
            found, share = self._first_rows(place)
        else:
            found, share = self._beginning(place, int(place.most))
        size = place.size * share
        return found, place.stands_for / size if size else 1.0

    def _first_rows(self, place: _Place) -> tuple[_Read, float]:
        """Return the first documents of a row group, and their share in it."""
        piece, rows = place.unit.pieces[0], place.unit.documents or 0
        batches = int(rows * place.most / place.size / BATCH_DOCUMENTS) + 1
        found = self._collect(islice(self._source.read(place.unit), batches))
        n = len(found.lengths)
        chunks = text_sizes(self._access, piece.file, self._config.columns.text)
        chunk = chunks[piece.row_group or 0]
        if n == rows or chunk.is_dictionary:  # in a dictionary, repeated texts need no space
            return found, n / rows
        # The share counts bytes, not rows, because lengths may change within the row group.
        encoded = chunk.encoded * rows / (piece.documents or 1)
        return found, (sum(found.lengths) + 4 * n) / encoded

    def _beginning(self, place: _Place, most: int) -> tuple[_Read, float]:
        """Return the first documents of a file and their share; reads further if there are none."""
        store = _Beginnings(self._access.fs, most)
        reader = FORMATS[place.unit.format].make(self._config)
        found = self._collect(reader.read(Access(store), place.unit.pieces[0]))
        if not store.is_cut:
            return found, 1.0
        if not found.lengths:
            return self._beginning(place, 8 * most) if most < _LONGEST_BEGINNING else (found, 0.0)
        # The last document is cut off and lost: on average half of the document at a random place
        # (the inspection paradox).
        lengths = np.array(found.lengths) + 1.0
        lost = lengths @ lengths / lengths.sum() / 2
        return found, most / place.size * lengths.sum() / (lengths.sum() + lost)

    def _collect(self, documents: Iterable[DocumentBatch]) -> _Read:
        """Collect all documents, with cut texts to bound memory."""
        found = _Read([], [])
        try:
            for batch in documents:
                at, text = batch.table.column_names.index("text"), batch.table["text"]
                cut = pc.utf8_slice_codeunits(text, 0, self._longest)
                found.batches.append(replace(batch, table=batch.table.set_column(at, "text", cut)))
                found.lengths.extend(pc.fill_null(pc.binary_length(text), 0).to_pylist())
        except UnreadableUnitError:
            found.is_broken = True
        except (OSError, pa.ArrowException) as error:  # from the beginning of a cut file
            if isinstance(error, OSError) and not is_damage(error):
                raise
            found.is_broken = True
        return found


class _Beginnings:
    """A file system in which every file is damaged after its first bytes."""

    protocol = "file"

    def __init__(self, fs: Any, most: int) -> None:
        self.is_cut = False
        self._fs, self._most = fs, most

    def open(self, path: str, mode: str) -> io.IOBase:
        """Open the first bytes of a file."""
        if is_http(self._fs):  # not every server supports ranges
            with self._fs.open(path, mode, block_size=0) as stream:
                data = io.BufferedReader(stream).read(self._most + 1)
        else:
            data = self._fs.cat_file(path, start=0, end=self._most + 1)
        self.is_cut = len(data) > self._most
        return _Torn(data[: self._most]) if self.is_cut else io.BytesIO(data)


class _Torn(io.RawIOBase):
    """A file that ends with an error, like a damaged one (`is_damage`)."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        n = self._data.readinto(buffer)
        if not n:
            raise OSError("torn")
        return n


def _joined(batches: Sequence[DocumentBatch]) -> DocumentBatch:
    """Concatenate batches, of which there is at least one."""
    starts = np.cumsum([0, *(batch.table.num_rows for batch in batches)]).tolist()
    faults = {
        start + row: fault
        for start, batch in zip(starts, batches, strict=False)
        for row, fault in batch.faults.items()
    }
    return DocumentBatch(pa.concat_tables([batch.table for batch in batches]), faults)
