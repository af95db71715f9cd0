"""Documents on storage: which files there are, the units they are read in, and the reading.

Formats say what a file holds; here files become units, and units documents. Knows nothing of
passages, tokens or vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import fsspec
import pyarrow as pa

from actors.errors import EmbedError, SourceChangedError, SourceError, UnreadableUnitError
from pipelines.config.sections import Columns, SourceConfig, absolute_uri
from pipelines.source.formats.base import Access, DocumentBatch, FileFacts, Format, check_present
from pipelines.source.formats.registry import FORMATS, choose_format
from pipelines.source.listing import (
    FoundFiles,
    common_folder,
    describe_file,
    find_files,
    is_local,
    is_s3,
)
from pipelines.source.units import FileRange, Listing, SourceFile, Unit, total
from pipelines.store.faults import FAULTS, fault_of, fetched, may_pass

_REMEDY = (
    "Restore it and run the same command again. Re-indexing takes it as it is at its next start; a "
    "first run starts over with --fresh."
)


def unchanged(
    fs: Any, file: SourceFile, batches: Iterator[DocumentBatch]
) -> Iterator[DocumentBatch]:
    """The batches read of a file, each given only when it still is that file after the reading.

    On S3 only the first is looked after, and the file again at the end: there the driver asks for
    the version it opened. Where the bytes make no sense: perhaps because they are another file's.

    Raises:
        SourceChangedError: it is another one now, or gone.
    """
    is_pinned, is_checked = is_s3(fs), False
    try:
        for number, batch in enumerate(batches):
            is_checked = number == 0 or not is_pinned
            if is_checked:
                _check(fs, file)
            yield batch
    except EmbedError:
        raise
    except Exception as error:
        if not may_pass(error):
            _check(fs, file)
        raise
    if not is_checked or is_local(fs):
        _check(fs, file)


def _check(fs: Any, file: SourceFile) -> None:
    try:
        found = fetched(lambda: describe_file(fs, file.path))
    except FileNotFoundError:
        raise SourceChangedError(
            f"{file.path}: expected the file the plan pinned, found none.", _REMEDY
        ) from None
    if found != file:
        raise SourceChangedError(
            f"{file.path}: changed since the run was planned "
            f"({file.size} bytes, {file.etag} -> {found.size} bytes, {found.etag}).",
            _REMEDY,
        )


_THREADS = 32


class Source:
    """The documents a configuration names."""

    def __init__(self, config: SourceConfig) -> None:
        """Open the store.

        Raises:
            SourceError: no driver for it, or locations in several stores.
        """
        self._config = config
        self._fs, self._roots = _filesystem(config)
        self._access = Access(self._fs)

    def list_files(self) -> Listing:
        """The files, each location's by path; one that two locations name counts once.

        Raises:
            SourceError: nothing there, nothing readable, or no one format.
        """
        found = [
            self._find(uri, root) for uri, root in zip(self._config.uris, self._roots, strict=True)
        ]
        from_folder: dict[SourceFile, bool] = {}
        for place in found:
            for file in place.files:
                from_folder[file] = from_folder.get(file, True) and place.is_folder
        if not from_folder:
            raise SourceError(
                f"source.uri: expected files at {self._config.described}, found none."
            )
        with self._store_faults(self._config.described):
            name, files = choose_format(self._config, self._access, from_folder)
        return Listing(files, name, common_folder([place.base for place in found]))

    def units(self, listing: Listing, known: Mapping[str, pa.DataType] | None = None) -> list[Unit]:
        """The units in the order of the files, up to `limit` documents.

        `known`: the fields that the index has already, by name; it is not asked again whether there
        are such, or documents at all, but files must have them in these types.

        Raises:
            SourceError: no documents, a file not of the format, a configured column that is absent
                or of another type than in the first file.
        """
        units: list[Unit] = []
        left = self._config.limit
        present: dict[str, pa.DataType] = {}
        for pieces in self._pieces(listing, present, known):
            unit = Unit(len(units), listing.format, pieces, total(p.documents for p in pieces))
            if left is not None:
                documents = unit.documents
                taken = self._count(unit, left) if documents is None else min(documents, left)
                unit, left = replace(unit, documents=taken), left - taken
            units.append(unit)
            if left == 0:
                break
        if known is not None:
            return units
        if present:
            check_present(self._config, present, f"the first lines of {self._config.described}")
        if not any(piece.file.size for unit in units for piece in unit.pieces):
            raise SourceError(
                f"source.uri: expected documents at {self._config.described}, found none."
            )
        return units

    def read(self, unit: Unit, start: int = 0, stop: int | None = None) -> Iterator[DocumentBatch]:
        """Documents [start, stop) of a unit; none of a file that is no longer what was listed.

        Raises:
            SourceChangedError: a file is another one now, or gone, also in the middle.
            UnreadableUnitError: its bytes are damaged, or the store does not give them.
            StorageError: a disk of this machine is full.
        """
        if stop is None:
            stop = unit.documents
        reader, position = self._format(unit.format), 0
        for piece in unit.pieces:
            if stop is not None and position >= stop:
                return
            if piece.documents is not None and position + piece.documents <= start:
                position += piece.documents
                continue
            with _unreadable(replace(unit, pieces=(piece,))):  # of many files, the one
                left = None if stop is None else stop - position
                batches = _up_to(left, reader.read(self._access, piece))
                for batch in unchanged(self._fs, piece.file, batches):
                    n = batch.table.num_rows
                    low = max(start - position, 0)
                    high = n if stop is None else min(stop - position, n)
                    position += n
                    if low < high:
                        yield batch.slice(low, high)

    def no_documents(self, unit: Unit) -> DocumentBatch:
        """What `read` gives, with no rows: its types."""
        with _unreadable(unit):
            return self._format(unit.format).no_documents(self._access, unit.pieces[0])

    def _format(self, name: str) -> Format:
        return FORMATS[name].make(self._config)

    def _find(self, uri: str, root: str) -> FoundFiles:
        with self._store_faults(uri):
            try:
                return fetched(lambda: find_files(self._fs, root))
            except FileNotFoundError:
                raise SourceError(
                    f"source.uri: expected a file, folder or glob, found nothing at {uri}.",
                    "Check the path (and the bucket).",
                ) from None

    def _pieces(
        self,
        listing: Listing,
        present: dict[str, pa.DataType],
        known: Mapping[str, pa.DataType] | None,
    ) -> Iterator[tuple[FileRange, ...]]:
        """The pieces of each unit; adds to `present` the fields that any file has.

        Files are looked at as far as units are asked for.
        """
        reader, columns = self._format(listing.format), self._config.columns
        types = known

        def look(file: SourceFile) -> FileFacts:
            with self._store_faults(file.path):
                return reader.inspect(self._access, file, listing.name_of(file))

        def every_piece() -> Iterator[FileRange]:
            nonlocal types
            for file, facts in zip(listing.files, pool.map(look, listing.files), strict=True):
                if facts.present is not None:
                    present.update(facts.present)
                    types = types or facts.present
                    first = listing.files[0].path if known is None else "the index"
                    _check_types(columns, facts.present, file, types, first)
                yield from facts.pieces

        with ThreadPoolExecutor(_THREADS) as pool:
            try:
                pieces = every_piece()
                while unit := tuple(islice(pieces, FORMATS[listing.format].files_in_unit)):
                    yield unit
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _count(self, unit: Unit, at_most: int) -> int:
        with self._store_faults(str(unit)):
            return sum(batch.table.num_rows for batch in self.read(unit, 0, at_most))

    @contextmanager
    def _store_faults(self, where: str) -> Iterator[None]:
        try:
            yield
        except EmbedError:
            raise
        except Exception as error:
            fault = fault_of(error)
            if fault is None:
                raise
            what, remedy = FAULTS[fault]
            raise SourceError(
                f"source.uri: expected a readable place at {where}, found {what} ({error!s:.160}).",
                remedy,
            ) from error


@contextmanager
def _unreadable(unit: Unit) -> Iterator[None]:
    """Name the unit in what pyarrow (OSError or its own) or the store's driver raises."""
    try:
        yield
    except Exception as error:
        if isinstance(error, EmbedError):
            raise
        if not (isinstance(error, OSError | pa.ArrowException) or fault_of(error)):
            raise
        reason = " ".join(str(error).split())
        raise UnreadableUnitError(
            f"{unit}: cannot be read ({reason:.160}).",
            "Repair the file and start over with --fresh; if the store failed, run again.",
        ) from error


def _up_to(documents: int | None, batches: Iterator[DocumentBatch]) -> Iterator[DocumentBatch]:
    """As many batches as so many documents need."""
    given = 0
    for batch in batches:
        yield batch
        given += batch.table.num_rows
        if documents is not None and given >= documents:
            return


def _check_types(
    columns: Columns,
    found: Mapping[str, pa.DataType],
    file: SourceFile,
    expected: Mapping[str, pa.DataType],
    first: str,
) -> None:
    """What is copied goes into the index as it is: two types would be two schemas in one index."""
    for key, name in columns.by_key.items():
        if name not in columns.copied:
            continue
        kinds = found.get(name), expected.get(name)
        if None not in kinds and kinds[0] != kinds[1]:
            raise SourceError(
                f"source.columns.{key}: expected {kinds[1]} for {name!r} in {file.path}, "
                f"as in {first}, found {kinds[0]}.",
                "Give the column one type in all files, or leave it out.",
            )


def _filesystem(config: SourceConfig) -> tuple[Any, list[str]]:
    opened: list[tuple[Any, str]] = []
    for uri in map(absolute_uri, config.uris):
        try:
            options = _http_options(uri) | config.storage_options
            opened.append(fsspec.core.url_to_fs(uri, **options))
        except (ImportError, ValueError) as error:
            raise SourceError(f"source.uri: cannot read {uri} ({error}).") from None
    if len({id(fs) for fs, _ in opened}) > 1:
        raise SourceError(
            f"source.uri: expected locations in one store, got {config.described}.",
            "Make an index of each, or bring the files together.",
        )
    return opened[0][0], [root for _, root in opened]


def _http_options(uri: str) -> dict[str, Any]:
    """One request may last as long as its documents take, not aiohttp's five minutes."""
    if not uri.startswith(("http://", "https://")):
        return {}
    import aiohttp  # an optional dependency of fsspec

    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_read=300)}}
