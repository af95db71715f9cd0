"""Everything that is committed in an index: publications, manifests and their tables, all of it.

For looking after an index: what is wrong is noted and the rest is read all the same. A reader wants
one generation and stops at the first fault: see index.py.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from actors.errors import IndexStateError, StorageError
from pipelines.index.generations import Publication, read_manifest
from pipelines.index.layout import manifest_path
from pipelines.index.parts import read_columns
from pipelines.index.records import FileRecord, Manifest, TableRecord
from pipelines.index.schemas import DELETIONS_SCHEMA, FILES_SCHEMA
from pipelines.plan.inventory import Numbering
from pipelines.plan.known import NOT_READ_AS, IdSet, id_hashes
from pipelines.source.units import Unit
from pipelines.store.store import Store

_KEPT = 100


class Problems:
    """What is wrong with an index: the first hundred in words, the rest counted. Thread-safe."""

    def __init__(self) -> None:
        self.count = 0
        self._lines: list[str] = []
        self._paths: set[str] = set()
        self._lock = threading.Lock()

    def add(self, path: str, expected: object, found: object) -> None:
        """Note one."""
        self.note(path, f"expected {expected}, found {found}")

    def note(self, path: str, text: str) -> None:
        """Note one in words that say what was expected and what was found."""
        with self._lock:
            self.count += 1
            self._paths.add(path)
            if len(self._lines) < _KEPT:
                self._lines.append(" ".join(f"{path}: {text}".split()))

    def concern(self, path: str) -> bool:
        """Whether something is wrong with this file."""
        return path in self._paths

    def lines(self) -> list[str]:
        """One for each that was kept, by path, and one for those that were not."""
        more = self.count - len(self._lines)
        return sorted(self._lines) + ([f"... and {more:,} more"] if more else [])


@dataclass(frozen=True)
class Generation:
    """A manifest and what its tables say; None: that table cannot be used."""

    manifest: Manifest
    parts: list[FileRecord] | None
    documents: list[FileRecord] | None
    rejects: list[FileRecord] | None
    deletions: pa.Table | None
    unchanged: list[FileRecord] | None

    @property
    def number(self) -> int:
        """Its number."""
        return self.manifest.generation

    @property
    def files(self) -> list[FileRecord]:
        """Every file its tables list."""
        tables = (self.parts, self.documents, self.rejects, self.unchanged)
        return [file for table in tables for file in table or []]


def read_committed(store: Store, problems: Problems) -> dict[int, Generation]:
    """Number -> generation, of all whose manifest can be read, the oldest first.

    Raises:
        IndexStateError: there is neither a manifest nor a publication.
    """
    folders = (path.rsplit("/", 1)[-1] for path in store.list_folders("generations"))
    numbers = sorted(int(name) for name in folders if name.isdecimal())
    numbers = [number for number in numbers if store.exists(manifest_path(number))]
    published = [
        path for path in store.list("publications") if _stem(path).isdecimal()
    ]  # others are no publications, to a reader too
    if not numbers and not published:
        raise IndexStateError(
            f"{store.uri}: expected a committed index, found none.",
            "Run python -m pipelines.embed_corpus first; an interrupted run commits at its end.",
        )
    for path, content in zip(published, store.read_many(published), strict=True):
        _check_publication(path, content, numbers, problems)
    manifests = dict(_manifests(store, numbers, problems))
    for number, manifest in manifests.items():
        _check_parent(number, manifest, manifests, numbers, problems)
    return {number: read_tables(store, m, problems) for number, m in manifests.items()}


def chain_of(number: int, generations: Mapping[int, Generation]) -> list[Generation] | None:
    """A generation and its ancestors, the newest first; None: one of them cannot be read."""
    chain = [generations[number]]
    while (parent := chain[-1].manifest.parent) is not None:
        if parent not in generations or parent >= chain[-1].number:
            return None
        chain.append(generations[parent])
    return chain


def _read_table(store: Store, path: str, schema: pa.Schema, problems: Problems) -> pa.Table | None:
    """A table of a generation; None and a problem where it is none."""
    try:
        table = pq.read_table(pa.BufferReader(store.read(path)))
    except FileNotFoundError:
        problems.add(path, "a file", "none")
    except (StorageError, pa.ArrowException, OSError) as error:
        problems.add(path, "a table", one_line(error))
    else:
        if not table.schema.equals(schema):
            problems.add(path, f"columns {columns_of(schema)}", columns_of(table.schema))
        elif any(column.null_count for column in table.columns):
            problems.add(path, "a value in every field", "nulls")
        else:
            return table
    return None


def one_line(error: Exception) -> str:
    """What an error says, for a problem's line."""
    return " ".join(str(error).split())[:200]


def _check_publication(path: str, content: bytes, numbers: list[int], problems: Problems) -> None:
    try:
        number = Publication.model_validate_json(content).generation
    except ValidationError as error:
        problems.add(path, "a publication", f"something else ({error.errors()[0]['msg']})")
        return
    if number not in numbers:
        problems.add(path, f"generation {number} to be there", "no manifest of it")


def _manifests(
    store: Store, numbers: list[int], problems: Problems
) -> Iterator[tuple[int, Manifest]]:
    for number in numbers:
        path = manifest_path(number)
        try:
            manifest = read_manifest(store, number)
        except (IndexStateError, StorageError) as error:
            reason = error.message.removeprefix(f"{store.url(path)}: ").rstrip(".")
            expects = reason.startswith("expected ")
            problems.note(path, reason if expects else f"expected a manifest, found {reason}")
            continue
        if manifest.generation == number:
            yield number, manifest
        else:
            problems.add(path, f"generation {number}", f"generation {manifest.generation}")


def _check_parent(
    number: int,
    manifest: Manifest,
    manifests: dict[int, Manifest],
    numbers: list[int],
    problems: Problems,
) -> None:
    path, parent = manifest_path(number), manifest.parent
    if (source := manifest.compacts) is not None:
        # That one may have been removed since: all there is of it is in this one.
        if parent is not None or source >= number:
            found = f"parent {parent}, compacts {source}"
            problems.add(path, "no parent, and an earlier generation that it compacts", found)
        elif source in manifests:
            _check_fingerprint(path, manifest, manifests[source], problems)
    if parent is None:
        return
    if parent not in numbers or parent >= number:
        found = f"generation {parent}" if parent in numbers else f"{parent}, which has no manifest"
        problems.add(path, "an earlier generation as parent", found)
    elif parent in manifests:
        _check_fingerprint(path, manifest, manifests[parent], problems)


def _check_fingerprint(path: str, manifest: Manifest, before: Manifest, problems: Problems) -> None:
    expected, found = before.index_fingerprint, manifest.index_fingerprint
    if found != expected:
        origin = f"(generation {before.generation}'s)"
        problems.add(path, f"index_fingerprint {expected} {origin}", found)


def read_tables(store: Store, manifest: Manifest, problems: Problems) -> Generation:
    """A manifest with what its tables say; what is wrong with these becomes problems."""

    def read(record: TableRecord, schema: pa.Schema) -> pa.Table | None:
        try:
            found = hashlib.sha256(store.read(record.path)).hexdigest()
        except (FileNotFoundError, StorageError):
            found = record.sha256  # `_read_table` says why
        if found == record.sha256:
            return _read_table(store, record.path, schema, problems)
        problems.add(record.path, f"sha256 {record.sha256} (the manifest's)", found)
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


def columns_of(schema: pa.Schema) -> str:
    """A schema, for a problem's line."""
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def _stem(path: str) -> str:
    return path.rsplit("/", 1)[-1].removesuffix(".json")


_THREADS = 16
_SEEN = np.dtype(
    [
        *(("id", "u8"), ("check", "u8"), ("position", "i8")),
        *(("generation", "i4"), ("unit", "i4")),
    ]
)


class CurrentPlaces:
    """In memory: 32 bytes for each document that a run found unchanged."""

    def __init__(self, store: Store, chain: Sequence[Generation], units: Sequence[Unit]) -> None:
        """`units`: the inventory of the chain."""
        numbering = Numbering(units)
        self._nowhere = max((unit.number for unit in units), default=-1) + 1
        self._numbers = {g.number: numbering.of_run(g.manifest.run_id) for g in chain}
        jobs = [(g.number, file.path) for g in chain for file in g.unchanged or []]
        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(lambda job: _read(store, *job), jobs))
        every = np.concatenate([np.zeros(0, _SEEN), *found])
        # The newest first; of one run, the lowest place: the others lost the id to it.
        keys = (every["position"], every["unit"], -every["generation"].astype(np.int64))
        every = every[np.lexsort((*keys, every["check"], every["id"]))]
        again = (every["id"][1:] == every["id"][:-1]) & (every["check"][1:] == every["check"][:-1])
        self._seen = every[~np.append([False] * bool(len(every)), again).astype(bool)]
        self._ids = IdSet(
            np.ascontiguousarray(self._seen["id"]), np.ascontiguousarray(self._seen["check"])
        )

    def of(self, ledger: pa.Table, generation: int) -> pa.Table:
        """Live rows of a generation's ledger, with the unit and the position of today.

        A document whose last place is in no unit of the inventory any more gets a unit beyond all
        of them: to the next re-indexing run it is in none that is carried over, as before.
        """
        at = self._ids.find(*id_hashes(ledger["doc_id"]))
        newer = np.flatnonzero(at >= 0)
        newer = newer[self._seen["generation"][at[newer]] > generation]
        position = ledger["position"].to_numpy().copy()
        unit = self._today(ledger["unit"].to_numpy(), generation)
        seen = self._seen[at[newer]]
        position[newer] = seen["position"]
        for number in np.unique(seen["generation"]):
            rows = seen["generation"] == number
            unit[newer[rows]] = self._today(seen["unit"][rows], int(number))
        for name, values in (("unit", unit), ("position", position)):
            ledger = ledger.set_column(
                ledger.column_names.index(name), ledger.schema.field(name), pa.array(values)
            )
        return ledger

    def _today(self, units: np.ndarray, generation: int) -> np.ndarray:
        """The numbers now of units of a generation's run."""
        numbers = self._numbers[generation]
        found = np.full(len(units), NOT_READ_AS, np.int32)
        inside = units < len(numbers)
        found[inside] = numbers[units[inside]]
        return np.where(found == NOT_READ_AS, self._nowhere, found).astype(np.int32)


def _read(store: Store, generation: int, path: str) -> np.ndarray:
    table = read_columns(store, path, ["doc_id", "unit", "position"])
    rows = np.zeros(table.num_rows, _SEEN)
    rows["id"], rows["check"] = id_hashes(table["doc_id"])
    rows["generation"] = generation
    for name in ("unit", "position"):
        rows[name] = table[name].to_numpy()
    return rows
