"""A sample of a corpus: documents from places spread over it, and how much of it they are.

Reading is cheap and tokenising dear: more documents are read, so that their lengths are known, than
will be tokenised. Knows nothing of passages and tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import fsspec
import numpy as np

from pipelines.config.sections import SourceConfig, absolute_uri
from pipelines.estimate.sample_reader import Read, SampleRange, SampleReader, joined
from pipelines.source.formats.base import Access, DocumentBatch, compression_of
from pipelines.source.formats.parquet_files import ChunkSize, text_sizes
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
        places = [SampleRange(unit, size, stands_for=size) for unit, size in known]
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


def _weights(place: SampleRange, found: Read) -> np.ndarray:
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
) -> Iterator[SampleRange]:
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
                yield SampleRange(unit, size, distance, min(share, int(size)), offset=begin)
        else:
            is_dictionary = bool(sizes.is_dictionary[number])
            yield SampleRange(
                unit, size, distance * len(offsets), share * len(offsets), is_dictionary
            )


def _is_document_a_file(units: Sequence[Unit]) -> bool:
    first = units[0].pieces[0]
    return first.documents is not None and first.row_group is None


def _files(units: Sequence[Unit], sizes: UnitSizes, budget: Budget) -> list[SampleRange]:
    """Whole files, each as likely as any other."""
    total = float(sizes.text.sum())
    files = [(unit, piece) for unit in units for piece in unit.pieces[: unit.documents]]
    count = min(_count(_most(units, budget), total / len(files)), len(files))
    chosen = [files[i] for i in ((np.arange(count) + 0.5) * len(files) / count).astype(int)]
    found = [float(max(piece.file.size, 0)) for _, piece in chosen]
    return [
        SampleRange(
            replace(unit, pieces=(piece,), documents=1), size, size * total / max(sum(found), 1)
        )
        for (unit, piece), size in zip(chosen, found, strict=True)
    ]


def _has_lines(unit: Unit, access: Access) -> bool:
    """It can be read from any byte on."""
    file = unit.pieces[0].file
    is_plain = unit.format in ("jsonl", "lines") and not compression_of(file.path)
    return is_plain and file.size > 0 and access.gives_ranges(file)
