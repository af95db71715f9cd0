"""Turns a batch of documents into output rows without vectors, ledger rows and rejects.

How documents become rows is decided in rows.py. Where slices end is decided in slices.py, from the
block's cumulative counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.tokens.tokenizer import TOKENS_COLUMN
from pipelines.index.schemas import HASH, UNCHANGED_SCHEMA, RejectCode, reject_table
from pipelines.plan.known import NOT_READ_AS, KnownDocuments, duplicate_of
from pipelines.source.formats.base import DocumentBatch

DOCUMENTS_SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("doc_hash", HASH),
        ("position", pa.int64()),
        ("n_rows", pa.int32()),
        ("n_tokens", pa.int64()),
        ("old_part", pa.string()),
        ("old_first_row", pa.int64()),
        ("old_n_rows", pa.int64()),
    ]
)
"""Schema of documents with passages. `old_...`: the index's rows of an edited document."""


class DocumentTables(NamedTuple):
    """The output of some documents, before encoding."""

    passages: pa.Table
    ledger: pa.Table
    """Schema: DOCUMENTS_SCHEMA."""
    rejects: pa.Table
    unchanged: pa.Table
    """Documents that the index already has unchanged: doc_id, unit, position."""

    @staticmethod
    def concat(tables: Sequence[DocumentTables]) -> DocumentTables:
        """Concatenate each table, in order."""
        return DocumentTables(*map(pa.concat_tables, zip(*tables, strict=True)))


@dataclass(frozen=True)
class DocumentBlock:
    """A batch of documents, chunked and tokenised.

    Each array holds cumulative counts over the documents, int64 [documents + 1].
    """

    tables: DocumentTables
    ends: tuple[np.ndarray, ...]
    """Rows of each table, in the order of `tables`."""
    tokens: np.ndarray
    work: np.ndarray
    """Documents that are new, edited or rejected, not unchanged."""

    @property
    def rows(self) -> np.ndarray:
        """Return the cumulative number of passages."""
        return self.ends[0]

    def __len__(self) -> int:
        return len(self.tokens) - 1

    def between(self, start: int, stop: int) -> DocumentTables:
        """Return the tables of documents [start, stop)."""
        parts = zip(self.tables, self.ends, strict=True)
        return DocumentTables(
            *(table.slice(ends[start], ends[stop] - ends[start]) for table, ends in parts)
        )


Fault = tuple[RejectCode, str]
"""Reject code and detail of a document that cannot be embedded."""


@dataclass(frozen=True)
class Rows:
    """The output rows of some documents, in document order."""

    document: np.ndarray
    """int64 [rows]: index of each row's document, ascending."""
    lengths: np.ndarray
    """int32 [rows]: number of tokens."""
    columns: pa.Table
    """Output columns without vectors and copied columns, and the encoder's input, `input_ids`."""


class RowMaker(Protocol):
    """Turns documents into rows."""

    def faults(self, documents: pa.Table) -> Sequence[Fault | None]:
        """Return the fault of each document, None for a valid document."""

    def rows(self, documents: pa.Table) -> Rows:
        """Return the rows of documents without a fault."""


class BlockBuilder:
    """Builds blocks of documents."""

    def __init__(self, maker: RowMaker, copied: Sequence[str]) -> None:
        """`copied`: source columns that are copied to every row of a document."""
        self._maker, self._copied = maker, copied

    def build(
        self,
        batch: DocumentBatch,
        unit: int,
        position: int,
        known: KnownDocuments | None = None,
    ) -> DocumentBlock:
        """Build the block of documents that begins at `position` of a unit.

        `known`: the documents of the index; unchanged documents get no rows.
        """
        documents = batch.table
        ids = documents["doc_id"].to_pylist()
        faults = [
            batch.faults.get(row) or own for row, own in enumerate(self._maker.faults(documents))
        ]
        good = np.array([fault is None for fault in faults], dtype=bool)
        hashes = pa.array(self._document_hashes(documents.filter(pa.array(good))), HASH)
        old: list[Any] = [[None] * len(hashes)] * 3
        is_same = np.zeros(len(good), bool)
        if known is not None:
            rows = np.flatnonzero(good)
            found = known.look_up(documents["doc_id"].take(pa.array(rows)), hashes)
            held = found.unit != NOT_READ_AS  # by an unchanged unit, which is not read
            lost = held & found.known & (found.same | (found.unit < unit))
            for row in rows[lost].tolist():
                faults[row] = duplicate_of("in a file that did not change")
            is_same[rows[found.same & ~lost]] = True
            chosen = ~lost & ~found.same
            good[rows[~chosen]] = False
            hashes = hashes.filter(pa.array(chosen))
            part = [known.parts[p] if p >= 0 else None for p in found.part[chosen].tolist()]
            old = [part, found.first_row[chosen], found.n_rows[chosen]]
        taken = documents.filter(pa.array(good))
        made = self._maker.rows(taken)
        per_document = np.bincount(made.document, minlength=taken.num_rows)
        tokens_of = np.bincount(
            made.document, weights=made.lengths, minlength=taken.num_rows
        ).astype(np.int64)
        rejects = [
            (ids[row], unit, position + row, *fault)
            for row, fault in enumerate(faults)
            if fault is not None
        ]
        unchanged = [
            documents["doc_id"].filter(pa.array(is_same)),
            np.full(int(is_same.sum()), unit),
            position + np.flatnonzero(is_same),
        ]
        ledger = [
            taken["doc_id"],
            hashes,
            position + np.flatnonzero(good),
            per_document,
            tokens_of,
            *old,
        ]
        chosen_of, same_of = _cumulative(good), _cumulative(is_same)
        every = np.arange(len(good) + 1)
        return DocumentBlock(
            tables=DocumentTables(
                passages=self._row_columns(taken, made, per_document),
                ledger=pa.table(ledger, schema=DOCUMENTS_SCHEMA),
                rejects=reject_table(rejects),
                unchanged=pa.table(unchanged, schema=UNCHANGED_SCHEMA),
            ),
            ends=(
                _cumulative(per_document)[chosen_of],
                chosen_of,
                every - chosen_of - same_of,
                same_of,
            ),
            tokens=_cumulative(tokens_of)[chosen_of],
            work=every - same_of,
        )

    def _row_columns(self, documents: pa.Table, made: Rows, per_document: np.ndarray) -> pa.Table:
        document = pa.array(made.document)
        firsts = np.repeat(_cumulative(per_document)[:-1], per_document)
        numbers = pa.array((np.arange(len(firsts)) - firsts).astype(np.int32))
        ids = documents["doc_id"].take(document)
        columns: dict[str, Any] = {
            "doc_id": ids,
            "passage_id": pc.binary_join_element_wise(ids, numbers.cast(pa.string()), "#"),
            "passage_no": numbers,
        }
        own = made.columns
        columns |= {name: own[name] for name in own.column_names if name != TOKENS_COLUMN}
        for name in self._copied:
            columns[name] = documents[name].take(document)
        return pa.table(columns | {TOKENS_COLUMN: own[TOKENS_COLUMN]})

    def _document_hashes(self, documents: pa.Table) -> list[bytes]:
        """Hash title, text and copied columns, without the id; re-indexing compares the hashes."""
        names = ["title", "text", *self._copied]
        values = zip(*(_plain(documents[name]) for name in names), strict=True)
        return [
            hash_of(json.dumps(row, ensure_ascii=False, default=str).encode()) for row in values
        ]


def _plain(column: pa.ChunkedArray) -> list[Any]:
    """Return Python values to hash; times as integers, since Python's years end at 9999."""
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.int32() if column.type.bit_width == 32 else pa.int64())
    return column.to_pylist()  # type: ignore[no-any-return]


def hash_of(data: bytes) -> bytes:
    """Return the 16-byte BLAKE2b hash that HASH columns hold."""
    return hashlib.blake2b(data, digest_size=16).digest()


def _cumulative(counts: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
