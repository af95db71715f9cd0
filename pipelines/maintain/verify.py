"""Compares every byte of an index with its manifests: checksums, rows, ids, counts and vectors.

Each file is fetched once and read at most twice: for its checksum, then for its rows, one row group
at a time. Memory: 8 bytes for each document, and the ledger rows of eight slices. Checks that
depend on a damaged file are skipped, as the file itself is reported.

Rows are compared with the ledger, so all passage ids are `<doc_id>#<n>` with n from 0. Passage ids
are therefore unique in a view if its document ids are.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from actors.errors import StorageError
from pipelines.index.layout import manifest_path, plan_path
from pipelines.index.parts import VECTOR_COLUMNS, local_file, read_columns
from pipelines.index.records import FileRecord
from pipelines.index.schemas import LEDGER_SCHEMA, REJECTS_SCHEMA, UNCHANGED_SCHEMA
from pipelines.maintain.audit import Generation, Problems, chain_of, is_complete, one_line
from pipelines.maintain.rewrite import ledger_of
from pipelines.maintain.verify_rows import (
    MASKED_SCHEMA,
    PartCheck,
    added,
    check_counts,
    check_part,
    masked_rows,
)
from pipelines.plan.plan import load_plan
from pipelines.store.files import file_sha256
from pipelines.store.store import Store

T = TypeVar("T")

_THREADS = 8  # each holds a row group (8 MB) and its vectors as float32


def check_deep(store: Store, generations: Mapping[int, Generation], problems: Problems) -> None:
    """Read all files of all generations, except those that already have a problem."""
    masked = masked_rows(generations)
    ledgers: dict[int, _Ledgers | None] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        check = _Check(store, problems, pool, masked, set())
        for number, generation in generations.items():
            ledgers[number] = check.ledgers(generation)
            totals = check.parts(generation, ledgers[number])
            rejects = check.rejects(generation)
            check.unchanged(generation)
            check_counts(generation, totals, rejects, problems)
            if chain := chain_of(number, generations):
                check.view(chain, ledgers)


@dataclass(frozen=True)
class _Ledgers:
    """The ledger of one generation."""

    hashes: dict[str, np.ndarray]
    """Ledger file -> 64-bit hashes of its doc_ids."""
    by_part: dict[str, list[str]]
    """Part -> the ledger files with rows of the part."""


@dataclass(frozen=True)
class _Check:
    store: Store
    problems: Problems
    pool: ThreadPoolExecutor
    masked: dict[str, pa.Table]
    read: set[FileRecord]
    """Files whose checksum was verified; compacted generations share parts with others."""

    def ledgers(self, generation: Generation) -> _Ledgers | None:
        """Check checksums, rows and columns of the ledger files; None if one is unusable."""
        parts = pa.array([file.path for file in generation.parts or []], pa.string())

        def look(file: pq.ParquetFile, path: str) -> tuple[np.ndarray, list[str]] | None:
            table = self._table(file, path, LEDGER_SCHEMA)
            if table is None:
                return None
            named = table["part"].unique()
            if generation.parts is not None:
                for other in named.filter(pc.invert(pc.is_in(named, parts))).to_pylist():
                    self.problems.add(path, f"parts of generation {generation.number}", other)
            return _hashes(table), named.to_pylist()

        found = self._read_all(generation.documents, look)
        if found is None:
            return None
        by_part: dict[str, list[str]] = defaultdict(list)
        for path, (_, named) in found.items():
            for part in named:
                by_part[part].append(path)
        return _Ledgers({path: hashes for path, (hashes, _) in found.items()}, by_part)

    def parts(self, generation: Generation, ledgers: _Ledgers | None) -> Counter[str] | None:
        """Check checksums and rows of the parts; return their total counts, None if unknown."""
        by_part = ledgers.by_part if ledgers and generation.deletions is not None else None
        has_vectors = any(o in VECTOR_COLUMNS for o in generation.manifest.outputs)
        normalized = has_vectors and self._normalizes(generation.manifest.run_id)
        nothing = MASKED_SCHEMA.empty_table()
        read_before = {file.path for file in generation.parts or [] if file in self.read}

        def look(file: pq.ParquetFile, path: str) -> Counter[str] | None:
            ledger = None if by_part is None else ledger_of(self.store, path, by_part)
            masked, again = self.masked.get(path, nothing), path in read_before
            part = PartCheck(path, generation.manifest, normalized, ledger, masked, not again)
            return check_part(file, part, self.problems)

        found = self._read_all(generation.parts, look)
        return None if by_part is None or found is None else added(found.values())

    def rejects(self, generation: Generation) -> Counter[str] | None:
        """Check checksums and rows of the rejects files; return the number of rows by code."""

        def look(file: pq.ParquetFile, path: str) -> Counter[str] | None:
            table = self._table(file, path, REJECTS_SCHEMA, nulls=True)
            return None if table is None else Counter(table["code"].to_pylist())

        found = self._read_all(generation.rejects, look)
        return None if found is None else added(found.values())

    def unchanged(self, generation: Generation) -> None:
        """Check checksums and rows of the files of unchanged documents."""

        def look(file: pq.ParquetFile, path: str) -> None:
            self._table(file, path, UNCHANGED_SCHEMA)

        self._read_all(generation.unchanged, look)

    def view(self, chain: list[Generation], ledgers: Mapping[int, _Ledgers | None]) -> None:
        """Check that each document occurs once in the view of a generation and its ancestors.

        Two passes, as in a commit: 64-bit hashes of all ids, then the rows whose hash repeats.
        """
        hashes: dict[str, np.ndarray] = {}
        for generation in chain:
            mine = ledgers[generation.number]
            if mine is None or generation.deletions is None:
                return
            hashes |= mine.hashes
        every = np.sort(np.concatenate([np.empty(0, np.uint64), *hashes.values()]))
        repeated = np.unique(every[1:][every[1:] == every[:-1]])
        suspects = [path for path, found in hashes.items() if np.isin(found, repeated).any()]

        def look(path: str) -> pa.Table:
            table = read_columns(self.store, path, ["doc_id", "part", "first_row"])
            return table.filter(pa.array(np.isin(_hashes(table), repeated)))

        if suspects:
            keys = ["part", "first_row"]
            masked = pa.concat_tables(
                [g.deletions.select(keys) for g in chain if g.deletions is not None]
            )
            rows = pa.concat_tables(self.pool.map(look, suspects))
            live = rows.join(masked, keys, join_type="left anti")
            counts = live["doc_id"].value_counts()
            path = manifest_path(chain[0].number)
            for count in counts.filter(pc.greater(counts.field("counts"), 1)).to_pylist():
                found = f"{count['values']!r} {count['counts']} times"
                self.problems.add(path, "each doc_id once in its live view", found)

    def _read_all(
        self,
        files: list[FileRecord] | None,
        look: Callable[[pq.ParquetFile, str], T | None],
    ) -> dict[str, T] | None:
        """Return path -> result of `look` for each file; None if a file differs from its record."""

        def read(record: FileRecord) -> T | None:
            path = record.path
            if self.problems.concern(path):
                return None
            try:
                if record in self.read:
                    with self.store.open_input(path) as again, pq.ParquetFile(again) as file:
                        return look(file, path)
                with local_file(self.store, path) as local:
                    if (found := file_sha256(local)) != record.sha256:
                        self.problems.add(path, f"sha256 {record.sha256}", found)
                        return None
                    self.read.add(record)
                    with pq.ParquetFile(local) as file:
                        if file.metadata.num_rows == record.rows:
                            return look(file, path)
                        rows = file.metadata.num_rows
                        self.problems.add(path, f"{record.rows:,} rows", f"{rows:,}")
            except FileNotFoundError:
                self.problems.add(path, "a file", "none")
            except (StorageError, pa.ArrowException, OSError) as error:
                self.problems.add(path, "a Parquet file", one_line(error))
            return None

        results = zip(files or [], self.pool.map(read, files or []), strict=True)
        found = {file.path: result for file, result in results if result is not None}
        return found if files is not None and len(found) == len(files) else None

    def _table(
        self, file: pq.ParquetFile, path: str, schema: pa.Schema, *, nulls: bool = False
    ) -> pa.Table | None:
        table = file.read()
        return table if is_complete(table, schema, path, self.problems, nulls=nulls) else None

    def _normalizes(self, run_id: str) -> bool:
        """Return whether the plan of the run says that its vectors have unit length."""
        path = plan_path(run_id)
        try:
            plan = load_plan(self.store, run_id)
        except (ValidationError, StorageError) as error:
            self.problems.add(path, "the plan of a run", one_line(error))
            return False
        model: Any = plan.request.get("model") if plan else None
        normalize = model.get("normalize") if isinstance(model, dict) else None
        if not isinstance(normalize, bool):
            found = "a plan that does not" if plan else "none"
            self.problems.add(path, "a plan that says whether vectors are normalised", found)
        return normalize is True


def _hashes(ledger: pa.Table) -> np.ndarray:
    ids = ledger["doc_id"].to_numpy().astype(object)
    hashes: np.ndarray = pd.util.hash_array(ids, categorize=False)
    return hashes
