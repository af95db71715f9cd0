"""The files of a source, the pieces that files are cut into, and the units that runs read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class SourceFile:
    """One file of the source, as it was when it was listed."""

    path: str
    size: int
    etag: str
    """The store's ETag, or a time of modification where it has none."""


@dataclass(frozen=True)
class Listing:
    """The files of a source, as they are now."""

    files: list[SourceFile]
    """In plan order."""
    format: str
    base: str
    """The folder that names in ids are relative to."""

    @property
    def hash(self) -> str:
        """One hash for the state of all of them."""
        lines = "".join(f"{file.path}\0{file.size}\0{file.etag}\n" for file in self.files)
        return hashlib.sha256(lines.encode()).hexdigest()[:32]

    def name_of(self, file: SourceFile) -> str:
        """Relative to `base`."""
        return file.path.removeprefix(self.base).lstrip("/")


@dataclass(frozen=True)
class FileRange:
    """A part of one file that is read on its own."""

    file: SourceFile
    name: str
    """The file's name in ids: relative to the configured location, so that a corpus may move."""
    start: int
    """First row of a row group, else first byte."""
    stop: int
    """One past the last."""
    row_group: int | None = None
    documents: int | None = None
    """None where only reading tells."""


@dataclass(frozen=True)
class Unit:
    """What one reading task reads: a piece of a file, or several short text files."""

    number: int
    format: str
    pieces: tuple[FileRange, ...]
    documents: int | None
    """How many of them, counted from the first, belong to the run; None: all, however many."""
    wanted: tuple[tuple[int, int | None], ...] = ((0, None),)
    """The ranges of documents to read, None for the end; none when it is as it was."""
    origins: tuple[tuple[str, int], ...] = ()
    """Where nothing is wanted: the runs that have read it, and its number in each."""

    @property
    def documents_wanted(self) -> int | None:
        """How many documents the run reads of it, None where only reading tells."""
        stops = total(self.documents if stop is None else stop for _, stop in self.wanted)
        return None if stops is None else stops - sum(start for start, _ in self.wanted)

    def __str__(self) -> str:
        """For messages."""
        first = self.pieces[0]
        where = ""
        if first.row_group is not None:
            where = f", row group {first.row_group}"
        elif first.start or first.stop < first.file.size:
            where = f", bytes {first.start:,} to {first.stop:,}"
        more = f" and {len(self.pieces) - 1} more files" if len(self.pieces) > 1 else ""
        return f"{first.file.path}{where}{more}"


def total(counts: Iterable[int | None]) -> int | None:
    """The sum of counts, None where one of them is not known."""
    known = list(counts)
    return None if None in known else sum(filter(None, known))
