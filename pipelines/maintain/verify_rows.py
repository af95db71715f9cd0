"""Compares one part with its ledger and manifest: ids, tokens, counts and vectors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.index.layout import manifest_path
from pipelines.index.parts import COMPUTED_COLUMNS, Part, colbert_from_bytes, rows_by_part
from pipelines.index.records import Manifest
from pipelines.index.schemas import (
    DELETIONS_SCHEMA,
    PASSAGE_SCHEMA,
    UNIT_LENGTH_TOLERANCE,
    VALUE_TYPES,
    output_type,
)
from pipelines.maintain.audit import Generation, Problems


class Findings:
    """The problems of the rows of one part; one line for each kind, with the number of rows."""

    def __init__(self, path: str, problems: Problems) -> None:
        self._path, self._problems = path, problems
        self._kinds: dict[str, tuple[int, str]] = {}

    def add(
        self, expected: str, rows: np.ndarray, found: str = "", *values: np.ndarray | Sequence[Any]
    ) -> None:
        """Add the numbers of rows that are not as expected.

        `found` describes the first row; its braces take the first item of each of `values`.
        """
        if len(rows):
            text = f"row {rows[0]:,} {found.format(*(each[0] for each in values))}".strip()
            count, first = self._kinds.get(expected, (0, text))
            self._kinds[expected] = (count + len(rows), first)

    def report(self) -> None:
        """Add the findings to the problems."""
        for expected, (count, first) in self._kinds.items():
            self._problems.add(self._path, expected, f"{count:,} exceptions, first: {first}")


class VectorCheck:
    """A check of the vectors of one part, called with consecutive batches of rows."""

    def __init__(self, manifest: Manifest, normalized: bool, findings: Findings) -> None:
        """Prepare for columns with the types of `output_type`."""
        self._value_type = VALUE_TYPES.get(manifest.vector_dtype)
        self._tolerance = (
            UNIT_LENGTH_TOLERANCE.get(manifest.vector_dtype, 0) if normalized else None
        )
        self._findings = findings

    def check(self, table: pa.Table, start: int) -> None:
        """Check the next rows; `start` is the number of the first."""
        rows = start + np.arange(table.num_rows)
        for name in COMPUTED_COLUMNS:
            if name in table.column_names:
                column = table[name].combine_chunks()
                if nulls := _nulls(column):
                    self._findings.add(f"no null in {name}", rows, f"or later: {nulls:,} nulls")
                else:
                    getattr(self, f"_{name}")(column, table, rows)

    def _dense(self, column: pa.Array, table: pa.Table, rows: np.ndarray) -> None:
        self._check_matrix("dense", column, rows)

    def _score(self, column: pa.Array, table: pa.Table, rows: np.ndarray) -> None:
        numbers = column if pa.types.is_floating(column.type) else column.flatten()
        bad = ~np.isfinite(numbers.to_numpy().reshape(len(column), -1)).all(axis=1)
        self._findings.add("finite numbers in score", rows[bad], "has NaN or Inf")

    def _colbert(self, column: pa.Array, table: pa.Table, rows: np.ndarray) -> None:
        if pa.types.is_fixed_size_binary(column.type.value_type):
            column = colbert_from_bytes(column, self._value_type)
        lengths, tokens = np.diff(column.offsets.to_numpy()), table["n_tokens"].to_numpy()
        bad = lengths != tokens - 1
        expected = "a colbert vector for each token except the first"
        found = "has {:,} for {:,} tokens"
        self._findings.add(expected, rows[bad], found, lengths[bad], tokens[bad])
        self._check_matrix("colbert", column.flatten(), np.repeat(rows, lengths))

    def _check_matrix(self, name: str, vectors: pa.FixedSizeListArray, rows: np.ndarray) -> None:
        """Check vectors; `rows` holds the row number of each vector."""
        numbers = vectors.flatten().to_numpy().reshape(len(vectors), -1).astype(np.float32)
        squares = np.einsum("nd,nd->n", numbers, numbers)
        finite = np.isfinite(squares)  # the square of a finite fp16 number is finite
        if not finite.all():
            finite = np.isfinite(numbers).all(axis=1)
        self._findings.add(f"finite numbers in {name}", rows[~finite], "has NaN or Inf")
        if self._tolerance is not None:
            norms = np.sqrt(squares)
            bad = finite & (np.abs(norms - 1) > self._tolerance)
            expected = f"{name} vectors of unit length"
            self._findings.add(expected, rows[bad], "is {:.4f} long", norms[bad])

    def _sparse(self, column: pa.Array, table: pa.Table, rows: np.ndarray) -> None:
        indices, values = column.flatten()
        lengths = [np.diff(lists.offsets.to_numpy()) for lists in (indices, values)]
        bad = lengths[0] != lengths[1]
        expected = "as many sparse values as indices"
        self._findings.add(expected, rows[bad], "has {:,} and {:,}", *(n[bad] for n in lengths))
        owners = [np.repeat(rows, n) for n in lengths]
        ids, weights = indices.flatten().to_numpy(), values.flatten().to_numpy()
        same_row = owners[0][1:] == owners[0][:-1]
        after = 1 + np.flatnonzero(same_row & (ids[1:] <= ids[:-1]))
        wrong = np.concatenate([after, np.flatnonzero(ids < 0)])
        self._findings.add("strictly ascending sparse indices", np.unique(owners[0][wrong]))
        bad = ~(np.isfinite(weights) & (weights > 0))
        expected = "finite sparse values above 0"
        self._findings.add(expected, np.unique(owners[1][bad]), "has {}", weights[bad])


def _nulls(column: pa.Array) -> int:
    """Count the nulls of an array and of all its children."""
    if pa.types.is_struct(column.type):
        inner = sum(_nulls(child) for child in column.flatten())
    elif pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        inner = _nulls(column.flatten())
    else:
        inner = 0
    return int(column.null_count) + inner


_ROW_COLUMNS = ("doc_id", "passage_id", "passage_no", "n_tokens", "truncated")
MASKED_SCHEMA = DELETIONS_SCHEMA.append(pa.field("generation", pa.int64()))
_DEFAULTS = {"doc_id": "", "passage_id": "", "passage_no": -1, "n_tokens": 0, "truncated": False}


@dataclass(frozen=True)
class PartCheck:
    """A part to check, and what is known about it before it is read."""

    path: str
    manifest: Manifest
    """The manifest of the generation that the part belongs to."""
    normalized: bool
    """Whether dense and ColBERT vectors must have unit length."""
    ledger: pa.Table | None
    """Ledger rows of the part; None if ledger or deletions are damaged: check only vectors."""
    masked: pa.Table
    """MASKED_SCHEMA: rows of the part that any generation deletes."""
    with_vectors: bool = True
    """Whether to check vectors; False if they were checked for another generation."""


def added(counts: Iterable[Counter[str]]) -> Counter[str]:
    """Return the sum of counters. Unlike `+`, it keeps negative numbers of damaged files."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total


def masked_rows(generations: Mapping[int, Generation]) -> dict[str, pa.Table]:
    """Return part -> rows of the part that any generation deletes (MASKED_SCHEMA)."""
    tables = [MASKED_SCHEMA.empty_table()]
    for generation in generations.values():
        if (table := generation.deletions) is not None:
            numbers = pa.array(np.full(table.num_rows, generation.number))
            tables.append(table.append_column("generation", numbers))
    every = pa.concat_tables(tables)
    rows = pd.Series(every["part"].to_pylist(), dtype=object)
    return {part: every.take(pa.array(at)) for part, at in rows.groupby(rows).indices.items()}


def check_part(file: pq.ParquetFile, part: PartCheck, problems: Problems) -> Counter[str] | None:
    """Check a part, one row group at a time.

    Returns the counts (names as in `Counts`) of rows that its own generation does not delete, None
    if the part lacks a required column.
    """
    columns = _columns(file.schema_arrow, part, problems)
    if columns is None:
        return None
    findings = Findings(part.path, problems)
    rows = _Rows(part, file.metadata.num_rows, findings)
    vectors = VectorCheck(part.manifest, part.normalized, findings)
    start, totals = 0, Counter[str]()
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns)
        totals.update(rows.check(table, start))
        vectors.check(table, start)
        start += table.num_rows
    rows.finish()
    findings.report()
    totals["documents"] = rows.live_documents
    return totals


def check_counts(
    generation: Generation,
    totals: Counter[str] | None,
    rejects: Counter[str] | None,
    problems: Problems,
) -> None:
    """Compare the content of a generation (None if unknown) with the counts of its manifest."""
    path, counts = manifest_path(generation.number), generation.manifest.counts
    if totals is not None:
        for name in ("documents", "passages", "tokens", "truncated"):
            said, found = getattr(counts, name), totals[name]
            if said != found:
                problems.add(path, f"{said:,} {name} (its counts)", f"{found:,} in its files")
    if rejects is not None and dict(rejects) != {k: n for k, n in counts.rejects.items() if n}:
        in_files = f"{dict(rejects)} in its files"
        problems.add(path, f"rejects {counts.rejects} (its counts)", in_files)


def _columns(schema: pa.Schema, part: PartCheck, problems: Problems) -> list[str] | None:
    """Return the columns to read; a missing column or a wrong type becomes a problem."""
    types = {field.name: field.type for field in schema}

    def is_there(name: str, kind: pa.DataType) -> bool:
        found = types.get(name, "none")
        # Compared as text, because Parquet and Arrow name the items of lists differently.
        if str(found).replace("<element: ", "<item: ") == str(kind):
            return True
        problems.add(part.path, f"a column {name} ({kind})", found)
        return False

    wrong = [n for n in _ROW_COLUMNS if not is_there(n, PASSAGE_SCHEMA.field(n).type)]
    if wrong:
        return None
    outputs = part.manifest.outputs if part.with_vectors else []
    chosen = [name for name in COMPUTED_COLUMNS if name in outputs]
    return [*_ROW_COLUMNS, *(n for n in chosen if is_there(n, output_type(n, part.manifest)))]


class _Rows:
    """The rows of a part: which document owns each one, and whether it fits that document."""

    def __init__(self, part: PartCheck, rows: int, findings: Findings) -> None:
        self._findings = findings
        self._ledger = part.ledger
        own = pc.equal(part.masked["generation"], part.manifest.generation)
        masked = rows_by_part([part.masked.filter(own)]).get(part.path, ())
        self._live = Part(part.path, rows, masked).live_mask()
        self._owner = np.full(rows, -1)
        self.live_documents = 0
        if part.ledger is not None:
            self._firsts = part.ledger["first_row"].to_numpy()
            self._tokens = np.zeros(part.ledger.num_rows, np.int64)
            self._place(part.ledger)
            self._check_masked(part.ledger, part.masked)

    def _place(self, ledger: pa.Table) -> None:
        for number, (first, n) in enumerate(_ranges(ledger)):
            owner = self._owner[max(first, 0) : max(first + n, 0)]
            if first < 0 or n < 1 or len(owner) < n or (owner >= 0).any():
                expected = "rows of its own for each document of the ledger"
                found = "up to {:,} of document {!r}"
                doc_id = ledger["doc_id"][number].as_py()
                self._findings.add(expected, np.array([first]), found, [first + n], [doc_id])
            owner[:] = number
            self.live_documents += bool(len(owner) and self._live[max(first, 0)])

    def _check_masked(self, ledger: pa.Table, masked: pa.Table) -> None:
        """Check that each deletion covers a whole document, or rows without a document."""
        known = set(zip(ledger["doc_id"].to_pylist(), _ranges(ledger), strict=True))
        for doc_id, (first, n) in zip(masked["doc_id"].to_pylist(), _ranges(masked), strict=True):
            rows = self._owner[max(first, 0) : max(first + n, 0)]
            if (doc_id, (first, n)) not in known and (rows >= 0).any():
                expected = "deletions of whole documents of the ledger"
                found = "up to {:,} of {!r}"
                self._findings.add(expected, np.array([first]), found, [first + n], [doc_id])

    def check(self, table: pa.Table, start: int) -> Counter[str]:
        """Check the next rows; return the counts of live ones."""
        for name in _ROW_COLUMNS:
            if table[name].null_count:
                nulls = start + np.flatnonzero(table[name].is_null().to_numpy())
                self._findings.add(f"a {name} in every row", nulls)
                column = pc.fill_null(table[name], _DEFAULTS[name])
                table = table.set_column(table.column_names.index(name), name, column)
        rows = slice(start, start + table.num_rows)
        live, tokens = self._live[rows], table["n_tokens"].to_numpy()
        if self._ledger is not None:
            self._compare(table, start, self._owner[rows], live)
        return Counter(
            passages=int(live.sum()),
            tokens=int(tokens[live].sum(dtype=np.int64)),
            truncated=int(table["truncated"].to_numpy()[live].sum()),
        )

    def _compare(self, table: pa.Table, start: int, owner: np.ndarray, live: np.ndarray) -> None:
        assert self._ledger is not None
        add, rows = self._findings.add, start + np.arange(table.num_rows)
        add("a document of the ledger for every live row", rows[(owner < 0) & live])
        if (owner < 0).any():
            owned = owner >= 0
            table, rows, owner = table.filter(pa.array(owned)), rows[owned], owner[owned]
        np.add.at(self._tokens, owner, table["n_tokens"].to_numpy())
        ids = self._ledger["doc_id"].take(pa.array(owner))
        numbers = pa.array(rows - self._firsts[owner])
        names = pc.binary_join_element_wise(ids, numbers.cast(pa.string()), "#")
        right = {"doc_id": ids, "passage_no": numbers, "passage_id": names}
        for name, values in right.items():
            bad = pc.not_equal(table[name], values).to_numpy()
            pair = (each.filter(pa.array(bad)).to_pylist() for each in (table[name], values))
            add(f"{name} as in the ledger", rows[bad], "has {!r}, not {!r}", *pair)

    def finish(self) -> None:
        """Compare the tokens of each document with the ledger, after the last row."""
        if self._ledger is not None:
            said = self._ledger["n_tokens"].to_numpy()
            bad = said != self._tokens
            expected = "as many tokens of a document as the ledger says"
            found = "has {:,} tokens, not {:,}"
            self._findings.add(expected, self._firsts[bad], found, self._tokens[bad], said[bad])


def _ranges(table: pa.Table) -> Iterator[tuple[int, int]]:
    return zip(table["first_row"].to_pylist(), table["n_rows"].to_pylist(), strict=True)
