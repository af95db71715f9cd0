"""Lists the files of a source, divides them into units, and reads the documents of a unit.

The modules in `formats` interpret the content of a file. Does not depend on passages, tokens or
vectors.
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
    "Restore the file and run the same command again; or accept the change: start re-indexing "
    "again, or start a first run over with --fresh."
)


def unchanged(
    fs: Any, file: SourceFile, batches: Iterator[DocumentBatch]
) -> Iterator[DocumentBatch]:
    """Yield the batches of a file, each after a check that the file has not changed meanwhile.

    On S3, s3fs requests the version it opened, so the check runs only after the first batch and at
    the end. The check also runs after a decoding error, because a changed file may be the cause.

    Raises:
        SourceChangedError: the file was changed or deleted.
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
            f"{file.path}: changed since the run was planned (expected {file.size} bytes, "
            f"{file.etag}; found {found.size} bytes, {found.etag}).",
            _REMEDY,
        )


_THREADS = 32


class Source:
    """The documents that a configuration names."""

    def __init__(self, config: SourceConfig) -> None:
        """Open the store.

        Raises:
            SourceError: the store has no driver, or the locations are in several stores.
        """
        self._config = config
        self._fs, self._roots = _filesystem(config)
        self._access = Access(self._fs)

    def list_files(self) -> Listing:
        """Return the files, sorted by path within each location, without duplicates.

        Raises:
            SourceError: no file is found, the store cannot be read, or no single format fits.
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
        """Return the units in the order of the files, up to `limit` documents.

        `known`: the types of the fields that the index already has, by name. If given, files must
        match them, and the checks for missing columns and an empty source are skipped.

        Raises:
            SourceError: there are no documents, a file has another format, or a configured column
                is absent or has another type than in the first file.
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
        """Yield documents [start, stop) of a unit, only from files that match the listing.

        Raises:
            SourceChangedError: a file was changed or deleted, possibly during the reading.
            UnreadableUnitError: a file is damaged, or the store does not return it.
            StorageError: a local disk is full.
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
            with _unreadable(replace(unit, pieces=(piece,))):  # name only the failing file
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
        """Return an empty batch with the columns and types of `read`."""
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
        """Yield the pieces of each unit; add the fields of every inspected file to `present`.

        Files are inspected only as far as units are requested.
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
                f"source.uri: expected to read {where}, found {what} ({error!s:.160}).",
                remedy,
            ) from error


@contextmanager
def _unreadable(unit: Unit) -> Iterator[None]:
    """Convert errors of pyarrow and of the store's driver to one error that names the unit."""
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
    """Yield batches until they contain the given number of documents; None for all."""
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
    """Check that copied columns have one type in all files, because an index has one schema."""
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
            "Make one index for each store, or copy all files to one store.",
        )
    return opened[0][0], [root for _, root in opened]


def _http_options(uri: str) -> dict[str, Any]:
    """Lift aiohttp's limit of five minutes a request: reading a unit may take longer."""
    if not uri.startswith(("http://", "https://")):
        return {}
    import aiohttp  # an optional dependency of fsspec

    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_read=300)}}
