"""How large a corpus is before it is read: from listings, and from Parquet's footers."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np

from pipelines.config_sections import SourceConfig, absolute_uri
from pipelines.formats.base import Access, compression_of
from pipelines.formats.parquet_files import ChunkSize, text_sizes
from pipelines.listing import SourceFile, is_http
from pipelines.source import Unit

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
