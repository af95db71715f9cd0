"""Stored vectors against what they must be: types, lengths, finite numbers, unit norm."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from actors.encoded import SCORE
from pipelines.committed import Problems
from pipelines.output import COMPUTED_COLUMNS, colbert_from_bytes
from pipelines.records import Manifest
from pipelines.view_schema import score_type

_VALUE_TYPES = {"float16": pa.float16(), "float32": pa.float32()}
# Rounding a number to fp16 moves it by 2**-11 of itself at most, and so the length of a vector.
_TOLERANCES = {"float16": 1e-3, "float32": 1e-5}


class Findings:
    """Problems of the rows of one part: a line for each kind, whatever the number of rows."""

    def __init__(self, path: str, problems: Problems) -> None:
        self._path, self._problems = path, problems
        self._kinds: dict[str, tuple[int, str]] = {}

    def add(self, expected: str, rows: np.ndarray, found: object = "") -> None:
        """Note rows (their numbers) that are not so; `found`: what the first of them has."""
        if len(rows):
            count, first = self._kinds.get(expected, (0, f"row {rows[0]:,} {found}".strip()))
            self._kinds[expected] = (count + len(rows), first)

    def report(self) -> None:
        """Make them problems."""
        for expected, (count, first) in self._kinds.items():
            self._problems.add(self._path, expected, f"otherwise {count:,} times, first: {first}")


def expected_type(name: str, manifest: Manifest) -> pa.DataType:
    """The type of a vector column in the parts of a generation."""
    value, model = _VALUE_TYPES.get(manifest.vector_dtype, pa.null()), manifest.model
    if name == "dense":
        return pa.list_(value, model.dim)
    if name == "sparse":
        lists = [("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))]
        return pa.struct(lists)
    if name == SCORE:
        return score_type(manifest)
    dim = model.colbert_dim or 1
    if manifest.colbert_storage == "bytes":
        return pa.list_(pa.binary(dim * (4 if manifest.vector_dtype == "float32" else 2)))
    return pa.list_(pa.list_(value, dim))


class VectorCheck:
    """Looks at the vectors of one part, some rows at a time, in order."""

    def __init__(self, manifest: Manifest, normalized: bool, findings: Findings) -> None:
        """The columns must have the types `expected_type` says."""
        self._value_type = _VALUE_TYPES.get(manifest.vector_dtype)
        self._tolerance = _TOLERANCES.get(manifest.vector_dtype, 0) if normalized else None
        self._findings = findings

    def check(self, table: pa.Table, start: int) -> None:
        """The next rows, of which `start` is the first."""
        for name in COMPUTED_COLUMNS:
            if name in table.column_names:
                column = table[name].combine_chunks()
                if nulls := _nulls(column):
                    rows = start + np.arange(len(column))
                    self._findings.add(f"no null in {name}", rows, f"or another: {nulls:,} nulls")
                else:
                    getattr(self, f"_{name}")(column, table, start)

    def _dense(self, column: pa.Array, table: pa.Table, start: int) -> None:
        self._check_matrix("dense", column, start + np.arange(len(column)))

    def _score(self, column: pa.Array, table: pa.Table, start: int) -> None:
        numbers = column if pa.types.is_floating(column.type) else column.flatten()
        scores = numbers.to_numpy().reshape(len(column), -1)
        bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
        self._findings.add("finite numbers in score", start + bad, "has NaN or Inf")

    def _colbert(self, column: pa.Array, table: pa.Table, start: int) -> None:
        if pa.types.is_fixed_size_binary(column.type.value_type):
            column = colbert_from_bytes(column, self._value_type)
        lengths, expected = np.diff(column.offsets.to_numpy()), table["n_tokens"].to_numpy() - 1
        bad = np.flatnonzero(lengths != expected)
        if len(bad):
            found = f"has {lengths[bad[0]]:,} for {expected[bad[0]] + 1:,} tokens"
            self._findings.add("a colbert vector for each token but the first", start + bad, found)
        rows = np.repeat(start + np.arange(len(column)), lengths)
        self._check_matrix("colbert", column.flatten(), rows)

    def _check_matrix(self, name: str, vectors: pa.FixedSizeListArray, rows: np.ndarray) -> None:
        """`rows`: of the part, for each vector."""
        numbers = vectors.flatten().to_numpy().reshape(len(vectors), -1).astype(np.float32)
        squares = np.einsum("nd,nd->n", numbers, numbers)
        finite = np.isfinite(squares)  # of NaN, of Inf, and of nothing else an fp16 can be
        if not finite.all():
            finite = np.isfinite(numbers).all(axis=1)
        self._findings.add(f"finite numbers in {name}", rows[~finite], "has NaN or Inf")
        if self._tolerance is not None:
            norms = np.sqrt(squares)
            bad = np.flatnonzero(finite & (np.abs(norms - 1) > self._tolerance))
            if len(bad):
                found = f"is {norms[bad[0]]:.4f} long"
                self._findings.add(f"{name} vectors of unit length", rows[bad], found)

    def _sparse(self, column: pa.Array, table: pa.Table, start: int) -> None:
        indices, values = column.flatten()
        lengths = [np.diff(lists.offsets.to_numpy()) for lists in (indices, values)]
        unequal = np.flatnonzero(lengths[0] != lengths[1])
        if len(unequal):
            found = f"has {lengths[0][unequal[0]]:,} and {lengths[1][unequal[0]]:,}"
            self._findings.add("as many sparse values as indices", start + unequal, found)
        owners = [np.repeat(start + np.arange(len(column)), n) for n in lengths]
        ids, weights = indices.flatten().to_numpy(), values.flatten().to_numpy()
        same_row = owners[0][1:] == owners[0][:-1]
        after = 1 + np.flatnonzero(same_row & (ids[1:] <= ids[:-1]))
        wrong = np.concatenate([after, np.flatnonzero(ids < 0)])
        self._findings.add("strictly ascending sparse indices", np.unique(owners[0][wrong]))
        bad = np.flatnonzero(~(np.isfinite(weights) & (weights > 0)))
        if len(bad):
            found = f"has {weights[bad[0]]}"
            expected = "finite sparse values above 0"
            self._findings.add(expected, np.unique(owners[1][bad]), found)


def _nulls(column: pa.Array) -> int:
    """Of an array and of everything in it."""
    if pa.types.is_struct(column.type):
        inner = sum(_nulls(child) for child in column.flatten())
    elif pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        inner = _nulls(column.flatten())
    else:
        inner = 0
    return int(column.null_count) + inner
