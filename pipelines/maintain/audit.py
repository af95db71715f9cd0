"""Reads all publications, manifests and tables of an index, and collects every problem.

A problem does not stop the reading. A reader of one generation (pipelines/index/reader.py) stops at
the first problem instead.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from actors.errors import IndexStateError, StorageError
from pipelines.index.generations import (
    Publication,
    committed_generations,
    nothing_committed,
    publication_files,
    read_manifest,
)
from pipelines.index.layout import manifest_path
from pipelines.index.records import FileRecord, Manifest, TableRecord
from pipelines.index.schemas import DELETIONS_SCHEMA, FILES_SCHEMA
from pipelines.store.store import Store

_KEPT = 100


class Problems:
    """The problems of an index: the first hundred as text, the rest as a count. Thread-safe."""

    def __init__(self) -> None:
        self.count = 0
        self._lines: list[str] = []
        self._paths: set[str] = set()
        self._lock = threading.Lock()

    def add(self, path: str, expected: object, found: object) -> None:
        """Add a problem."""
        self.note(path, f"expected {expected}, found {found}")

    def note(self, path: str, text: str) -> None:
        """Add a problem; `text` says what was expected and what was found."""
        with self._lock:
            self.count += 1
            self._paths.add(path)
            if len(self._lines) < _KEPT:
                self._lines.append(" ".join(f"{path}: {text}".split()))

    def concern(self, path: str) -> bool:
        """Return whether a file has a problem."""
        return path in self._paths

    def lines(self) -> list[str]:
        """Return a line for each recorded problem, sorted, and one that counts the others."""
        more = self.count - len(self._lines)
        return sorted(self._lines) + ([f"... and {more:,} more"] if more else [])

    def refuse_any(self, expected: str, action: str) -> None:
        """Raise if there is a problem.

        Raises:
            IndexStateError: a problem was added; the message says that nothing was `action`.
        """
        if self.count:
            raise IndexStateError(
                f"{expected}, found {self.count} problems; the first: {self.lines()[0]}.",
                f"Nothing was {action}. python -m pipelines.verify_index lists them all.",
            )


@dataclass(frozen=True)
class Generation:
    """A manifest and the content of its tables; a field is None if that table is unusable."""

    manifest: Manifest
    parts: list[FileRecord] | None
    documents: list[FileRecord] | None
    rejects: list[FileRecord] | None
    deletions: pa.Table | None
    unchanged: list[FileRecord] | None

    @property
    def number(self) -> int:
        """The number of the generation."""
        return self.manifest.generation

    @property
    def files(self) -> list[FileRecord]:
        """All files that the tables list."""
        tables = (self.parts, self.documents, self.rejects, self.unchanged)
        return [file for table in tables for file in table or []]


def read_committed(store: Store, problems: Problems) -> dict[int, Generation]:
    """Return number -> generation for each readable manifest, the oldest first.

    Raises:
        IndexStateError: the index has neither a manifest nor a publication.
    """
    numbers = committed_generations(store)
    published = list(publication_files(store).values())
    if not numbers and not published:
        raise nothing_committed(store)
    for path, content in zip(published, store.read_many(published), strict=True):
        try:
            number = Publication.model_validate_json(content).generation
        except ValidationError as error:
            problems.add(path, "a publication", f"an invalid file ({error.errors()[0]['msg']})")
        else:
            if number not in numbers:
                problems.add(path, f"generation {number} to exist", "no manifest")
    read = {number: _manifest(store, number, problems) for number in numbers}
    manifests = {number: manifest for number, manifest in read.items() if manifest}
    for manifest in manifests.values():
        _check_parent(manifest, manifests, numbers, problems)
    return {number: read_tables(store, m, problems) for number, m in manifests.items()}


def chain_of(number: int, generations: Mapping[int, Generation]) -> list[Generation] | None:
    """Return a generation and its ancestors, the newest first; None if one is unreadable."""
    chain = [generations[number]]
    while (parent := chain[-1].manifest.parent) is not None:
        if parent not in generations or parent >= chain[-1].number:
            return None
        chain.append(generations[parent])
    return chain


def one_line(error: Exception) -> str:
    """Return the text of an error in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


def _manifest(store: Store, number: int, problems: Problems) -> Manifest | None:
    path = manifest_path(number)
    try:
        manifest = read_manifest(store, number)
    except (IndexStateError, StorageError) as error:
        reason = error.message.removeprefix(f"{store.url(path)}: ").rstrip(".")
        expects = reason.startswith("expected ")
        problems.note(path, reason if expects else f"expected a manifest, found {reason}")
        return None
    if manifest.generation == number:
        return manifest
    problems.add(path, f"generation {number}", f"generation {manifest.generation}")
    return None


def _check_parent(
    manifest: Manifest,
    manifests: Mapping[int, Manifest],
    numbers: Sequence[int],
    problems: Problems,
) -> None:
    """Check that the parent or compacted generation is earlier and has the same fingerprint."""
    number, parent, source = manifest.generation, manifest.parent, manifest.compacts
    path = manifest_path(number)
    if source is not None and (parent is not None or source >= number):
        found = f"parent {parent}, compacts {source}"
        problems.add(path, "no parent, and an earlier generation that it compacts", found)
    if parent is not None and (parent not in numbers or parent >= number):
        found = f"generation {parent}" if parent in numbers else f"{parent}, which has no manifest"
        problems.add(path, "an earlier generation as parent", found)
    # A generation that was compacted may have been removed since.
    before = manifests.get((source if parent is None else parent) or 0)
    if before is None or before.generation >= number:
        return
    if manifest.index_fingerprint != before.index_fingerprint:
        expected = f"{before.index_fingerprint} (generation {before.generation}'s)"
        problems.add(path, f"index_fingerprint {expected}", manifest.index_fingerprint)


def read_tables(store: Store, manifest: Manifest, problems: Problems) -> Generation:
    """Read the tables of a manifest; damaged tables become problems."""

    def read(record: TableRecord, schema: pa.Schema) -> pa.Table | None:
        path = record.path
        try:
            data = store.read(path)
            if (found := hashlib.sha256(data).hexdigest()) != record.sha256:
                problems.add(path, f"sha256 {record.sha256} (the manifest's)", found)
                return None
            table = pq.read_table(pa.BufferReader(data))
        except FileNotFoundError:
            problems.add(path, "a file", "none")
        except (StorageError, pa.ArrowException, OSError) as error:
            problems.add(path, "a table", one_line(error))
        else:
            return table if is_complete(table, schema, path, problems) else None
        return None

    def files(record: TableRecord | None) -> list[FileRecord] | None:
        if record is None:
            return []
        table = read(record, FILES_SCHEMA)
        return None if table is None else [FileRecord(**row) for row in table.to_pylist()]

    tables = manifest.tables
    return Generation(
        manifest,
        files(tables.parts),
        files(tables.documents),
        files(tables.rejects),
        read(tables.deletions, DELETIONS_SCHEMA),
        files(tables.unchanged),
    )


def is_complete(
    table: pa.Table, schema: pa.Schema, path: str, problems: Problems, *, nulls: bool = False
) -> bool:
    """Return whether a table has this schema and a value in every field; if not, add a problem.

    With `nulls`, fields may be null.
    """
    if not table.schema.equals(schema):
        problems.add(path, f"columns {columns_of(schema)}", columns_of(table.schema))
    elif not nulls and any(column.null_count for column in table.columns):
        problems.add(path, "a value in every field", "nulls")
    else:
        return True
    return False


def columns_of(schema: pa.Schema) -> str:
    """Return the columns of a schema, for a message."""
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
