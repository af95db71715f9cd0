"""One part against its ledger and its manifest: ids, tokens, and vectors that can be searched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.committed import Generation, Problems
from pipelines.layout import manifest_path
from pipelines.output import COMPUTED_COLUMNS
from pipelines.records import Manifest
from pipelines.schemas import DELETIONS_SCHEMA, PASSAGE_SCHEMA
from pipelines.verify_vectors import Findings, VectorCheck, expected_type

_ROW_COLUMNS = ("doc_id", "passage_id", "passage_no", "n_tokens", "truncated")
MASKED_SCHEMA = DELETIONS_SCHEMA.append(pa.field("generation", pa.int64()))
_DEFAULTS = {"doc_id": "", "passage_id": "", "passage_no": -1, "n_tokens": 0, "truncated": False}


@dataclass(frozen=True)
class Part:
    """What is known of a part before it is read."""

    path: str
    manifest: Manifest
    """Of the generation it belongs to."""
    normalized: bool
    """Its dense and ColBERT vectors are of unit length."""
    ledger: pa.Table | None
    """The ledger's rows of it; None: ledger or deletions are damaged, only vectors are checked."""
    masked: pa.Table
    """The rows of it that any generation masks: MASKED_SCHEMA."""
    with_vectors: bool = True
    """Not where they have been checked, as those of another generation."""


@dataclass(frozen=True)
class Totals:
    """What parts hold that their own generation does not mask."""

    documents: int = 0
    passages: int = 0
    tokens: int = 0
    truncated: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.documents + other.documents,
            self.passages + other.passages,
            self.tokens + other.tokens,
            self.truncated + other.truncated,
        )


def masked_rows(generations: Mapping[int, Generation]) -> dict[str, pa.Table]:
    """Part -> the rows of it that any generation masks."""
    tables = [MASKED_SCHEMA.empty_table()]
    for generation in generations.values():
        if (table := generation.deletions) is not None:
            numbers = pa.array(np.full(table.num_rows, generation.number))
            tables.append(table.append_column("generation", numbers))
    every = pa.concat_tables(tables)
    rows = pd.Series(every["part"].to_pylist(), dtype=object)
    return {part: every.take(pa.array(at)) for part, at in rows.groupby(rows).indices.items()}


def check_part(file: pq.ParquetFile, part: Part, problems: Problems) -> Totals | None:
    """Read a part, a row group at a time; None: it lacks columns that every part has."""
    columns = _columns(file.schema_arrow, part, problems)
    if columns is None:
        return None
    findings = Findings(part.path, problems)
    rows = _Rows(part, file.metadata.num_rows, findings)
    vectors = VectorCheck(part.manifest, part.normalized, findings)
    start, totals = 0, Totals()
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns)
        totals += rows.check(table, start)
        vectors.check(table, start)
        start += table.num_rows
    rows.finish()
    findings.report()
    return totals + Totals(documents=rows.live_documents)


def check_counts(
    generation: Generation,
    totals: Totals | None,
    rejects: Counter[str] | None,
    problems: Problems,
) -> None:
    """What a generation holds against what its manifest counts; None: that is unknown."""
    path, counts = manifest_path(generation.number), generation.manifest.counts
    if totals is not None:
        for name in ("documents", "passages", "tokens", "truncated"):
            said, found = getattr(counts, name), getattr(totals, name)
            if said != found:
                problems.add(path, f"{said:,} {name} (its counts)", f"{found:,} in its files")
    if rejects is not None and dict(rejects) != {k: n for k, n in counts.rejects.items() if n}:
        problems.add(
            path, f"rejects {counts.rejects} (its counts)", f"{dict(rejects)} in its files"
        )


def _columns(schema: pa.Schema, part: Part, problems: Problems) -> list[str] | None:
    """What to read; columns that are missing or of another type are problems."""

    def is_wrong(name: str, right: bool, expected: str) -> bool:
        if not right:
            found = str(schema.field(name).type) if name in schema.names else "none"
            problems.add(part.path, f"a column {name} ({expected})", found)
        return not right

    types = {field.name: field.type for field in schema}
    wrong = [
        is_wrong(name, types.get(name) == kind, str(kind))
        for name, kind in ((name, PASSAGE_SCHEMA.field(name).type) for name in _ROW_COLUMNS)
    ]
    if any(wrong):
        return None
    outputs = part.manifest.outputs if part.with_vectors else []
    chosen = [name for name in COMPUTED_COLUMNS if name in outputs]
    expected = {name: expected_type(name, part.manifest) for name in chosen}
    # By what they print: Parquet calls the items of lists otherwise than Arrow.
    same = {name: _shown(types.get(name)) == _shown(kind) for name, kind in expected.items()}
    vectors = [n for n in chosen if not is_wrong(n, same[n], _shown(expected[n]))]
    return [*_ROW_COLUMNS, *vectors]


def _shown(kind: pa.DataType | None) -> str:
    return str(kind).replace("<element: ", "<item: ")


class _Rows:
    """Whose a row is, and whether it is what its owner's n-th passage must be."""

    def __init__(self, part: Part, rows: int, findings: Findings) -> None:
        self._findings = findings
        self._ledger = part.ledger
        own = pc.equal(part.masked["generation"], part.manifest.generation)
        self._live = np.ones(rows, bool)
        for first, n in _ranges(part.masked.filter(own)):
            self._live[max(first, 0) : max(first + n, 0)] = False
        self._owner = np.full(rows, -1)
        self.live_documents = 0
        if part.ledger is not None:
            self._firsts = part.ledger["first_row"].to_numpy()
            self._tokens = np.zeros(part.ledger.num_rows, np.int64)
            self._place(part.ledger)
            self._check_masked(part)

    def _place(self, ledger: pa.Table) -> None:
        for number, (first, n) in enumerate(_ranges(ledger)):
            owner = self._owner[max(first, 0) : max(first + n, 0)]
            if first < 0 or n < 1 or len(owner) < n or (owner >= 0).any():
                found = f"up to {first + n:,} of document {ledger['doc_id'][number].as_py()!r}"
                expected = "rows of its own for each document of the ledger"
                self._findings.add(expected, np.array([first]), found)
            owner[:] = number
            self.live_documents += bool(len(owner) and self._live[max(first, 0)])

    def _check_masked(self, part: Part) -> None:
        """What is masked is a document, or rows that are nobody's."""
        assert part.ledger is not None
        documents = zip(part.ledger["doc_id"].to_pylist(), _ranges(part.ledger), strict=True)
        known = set(documents)
        masked = zip(part.masked["doc_id"].to_pylist(), _ranges(part.masked), strict=True)
        for doc_id, (first, n) in masked:
            rows = self._owner[max(first, 0) : max(first + n, 0)]
            if (doc_id, (first, n)) not in known and (rows >= 0).any():
                found = f"up to {first + n:,} of {doc_id!r}"
                expected = "deletions of whole documents of the ledger"
                self._findings.add(expected, np.array([first]), found)

    def check(self, table: pa.Table, start: int) -> Totals:
        """The next rows; what of them is live."""
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
        return Totals(
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
            bad = np.flatnonzero(pc.not_equal(table[name], values).to_numpy())
            if len(bad):
                found = f"has {table[name][bad[0]].as_py()!r}, not {values[bad[0]].as_py()!r}"
                add(f"{name} as the ledger has it", rows[bad], found)

    def finish(self) -> None:
        """After the last row."""
        if self._ledger is not None:
            said = self._ledger["n_tokens"].to_numpy()
            bad = np.flatnonzero(said != self._tokens)
            if len(bad):
                found = f"has {self._tokens[bad[0]]:,} tokens, not {said[bad[0]]:,}"
                expected = "as many tokens of a document as the ledger says"
                self._findings.add(expected, self._firsts[bad], found)


def _ranges(table: pa.Table) -> Iterator[tuple[int, int]]:
    return zip(table["first_row"].to_pylist(), table["n_rows"].to_pylist(), strict=True)
