"""The files of a source, the pieces that files are cut into, and the units that runs read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class SourceFile:
    """One file of the source: its path and its state when it was listed."""

    path: str
    size: int
    etag: str
    """The store's ETag, or the modification time if the store has no ETags."""


@dataclass(frozen=True)
class Listing:
    """The current files of a source."""

    files: list[SourceFile]
    """The files in plan order."""
    format: str
    base: str
    """The folder to which file names in document ids are relative."""

    @property
    def hash(self) -> str:
        """Return one hash over the state of all files."""
        lines = "".join(f"{file.path}\0{file.size}\0{file.etag}\n" for file in self.files)
        return hashlib.sha256(lines.encode()).hexdigest()[:32]

    def name_of(self, file: SourceFile) -> str:
        """Return the name of a file relative to `base`."""
        return file.path.removeprefix(self.base).lstrip("/")


@dataclass(frozen=True)
class FileRange:
    """A piece of one file that can be read independently of the rest."""

    file: SourceFile
    name: str
    """The file's name in ids, relative to the configured location, so that a corpus may move."""
    start: int
    """The first row of a row group; in other formats the first byte."""
    stop: int
    """One past the last row or byte."""
    row_group: int | None = None
    documents: int | None = None
    """The number of documents; None if it is only known after reading."""


@dataclass(frozen=True)
class Unit:
    """The input of one reading task: a piece of a file, or several short text files."""

    number: int
    format: str
    pieces: tuple[FileRange, ...]
    documents: int | None
    """The number of documents, from the first, that belong to the run; None for all."""
    wanted: tuple[tuple[int, int | None], ...] = ((0, None),)
    """The ranges of documents to read, None for the end; empty if the unit has not changed."""
    origins: tuple[tuple[str, int], ...] = ()
    """For an unchanged unit: the runs that have read it, and the unit's number in each run."""

    @property
    def documents_wanted(self) -> int | None:
        """Return how many documents the run reads, None if only reading can tell."""
        stops = total(self.documents if stop is None else stop for _, stop in self.wanted)
        return None if stops is None else stops - sum(start for start, _ in self.wanted)

    def __str__(self) -> str:
        """Describe the unit for messages."""
        first = self.pieces[0]
        where = ""
        if first.row_group is not None:
            where = f", row group {first.row_group}"
        elif first.start or first.stop < first.file.size:
            where = f", bytes {first.start:,} to {first.stop:,}"
        more = f" and {len(self.pieces) - 1} more files" if len(self.pieces) > 1 else ""
        return f"{first.file.path}{where}{more}"


def total(counts: Iterable[int | None]) -> int | None:
    """Return the sum of the counts, or None if one of them is unknown."""
    known = list(counts)
    return None if None in known else sum(filter(None, known))
