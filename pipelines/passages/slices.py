"""Reads, chunks and tokenises one unit, and cuts it into slices.

A slice ends at a fixed number of documents or tokens, so its limits depend neither on the cluster
nor on earlier runs. A slice is one row of the Ray dataset: its passages are a nested column with
all output columns but the vectors. So ColBERT vectors never cross the object store.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import UnreadableUnitError
from actors.tokens.tokenizer import TOKENS_COLUMN
from pipelines.index.schemas import PASSAGE_SCHEMA, UNCHANGED_SCHEMA, reject_table
from pipelines.passages.blocks import DOCUMENTS_SCHEMA, BlockBuilder, DocumentBlock, DocumentTables
from pipelines.plan.known import KnownDocuments, duplicate_of
from pipelines.source.source import Source
from pipelines.source.units import Unit

_UNCHANGED_PER_DOCUMENT = 100
"""A slice may hold this many times `max_documents` documents if most of them are unchanged."""


@dataclass(frozen=True)
class Slice:
    """One slice, ready to be encoded."""

    unit: int
    first_document: int
    documents: int
    """The number of input documents, including rejects."""
    last: bool
    """Whether the slice is the last of its unit."""
    passages: pa.Table
    """Output columns without vectors, and `input_ids`; rows in document order."""
    ledger: pa.Table
    """The documents that have passages; schema: DOCUMENTS_SCHEMA."""
    rejects: pa.Table
    unchanged: pa.Table
    """The documents that the index already has unchanged; schema: UNCHANGED_SCHEMA."""
    unreadable: bool = False
    """Whether the unit could not be read from this slice on; its one reject holds the reason."""

    def to_row(self) -> pa.Table:
        """Return the slice as one row, the form that is sent between tasks."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return pa.table(
            {
                name: _nest(value) if isinstance(value, pa.Table) else pa.array([value])
                for name, value in values.items()
            }
        )

    @staticmethod
    def from_row(row: pa.Table) -> Slice:
        """Invert `to_row` without copying buffers."""
        assert row.num_rows == 1, f"expected one slice a call, got {row.num_rows}"
        columns = zip(row.column_names, row.columns, strict=True)
        return Slice(
            **{
                name: _unnest(column) if pa.types.is_list(column.type) else column[0].as_py()
                for name, column in columns
            }
        )

    def edited(self) -> list[tuple[str, int, int]]:
        """Return part, first row and number of rows of the old version of each edited document."""
        old = self.ledger.filter(pc.is_valid(self.ledger["old_part"]))
        names = ("old_part", "old_first_row", "old_n_rows")
        return list(zip(*(old[name].to_pylist() for name in names), strict=True))


class SliceReader:
    """Reads the slices of units."""

    def __init__(
        self, source: Source, builder: BlockBuilder, max_documents: int, max_tokens: int
    ) -> None:
        """A slice ends when it reaches `max_documents` documents or `max_tokens` tokens."""
        # A task has one CPU: the tokenizer's own threads would compete with other tasks.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._source, self._builder = source, builder
        self._limits = max_documents, max_tokens

    def slices(
        self,
        unit: Unit,
        start: int = 0,
        stop: int | None = None,
        known: KnownDocuments | None = None,
    ) -> Iterator[Slice]:
        """Yield the slices of documents [start, stop) of a unit; a slice must begin at `start`.

        `known`: the documents of the index. If the unit cannot be read, the last slice is an
        `unreadable_slice`.
        """
        pending = _Pending(unit, start, *self._limits)
        try:
            for batch in self._source.read(unit, start, stop):
                block = self._builder.build(batch, unit.number, pending.next_document, known)
                done = 0
                while done < len(block):
                    if pending.is_full:  # more documents follow, so it is not the last slice
                        yield pending.close(last=False)
                    done = pending.take(block, done)
            if not pending.documents:
                block = self._builder.build(self._source.no_documents(unit), unit.number, start)
                pending.take(block, 0)
        except UnreadableUnitError as error:
            if pending.is_full:
                yield pending.close(last=False)
            yield unreadable_slice(unit.number, pending.first, error.message)
            return
        yield pending.close(last=stop in (None, unit.documents))


class _Pending:
    """The slice that is being filled."""

    def __init__(self, unit: Unit, first: int, max_documents: int, max_tokens: int) -> None:
        self.first = first
        self.documents = 0
        self._unit = unit
        self._max_documents, self._max_tokens = max_documents, max_tokens
        self._tokens = self._work = 0
        self._blocks: list[DocumentTables] = []

    @property
    def next_document(self) -> int:
        """Return the position of the next document in the unit."""
        return self.first + self.documents

    @property
    def is_full(self) -> bool:
        """Whether a limit is reached; the document that reaches it belongs to the slice."""
        return (
            self._work >= self._max_documents
            or self.documents >= self._max_documents * _UNCHANGED_PER_DOCUMENT
            or self._tokens >= self._max_tokens
        )

    def take(self, block: DocumentBlock, start: int) -> int:
        """Add as many documents of a block as fit, from `start` on; return where to continue."""
        tokens = block.tokens[start] + self._max_tokens - self._tokens
        work = block.work[start] + self._max_documents - self._work
        stop = min(
            start + self._max_documents * _UNCHANGED_PER_DOCUMENT - self.documents,
            max(int(np.searchsorted(block.work, work)), start + 1),
            max(int(np.searchsorted(block.tokens, tokens)), start + 1),
            len(block),
        )
        self._blocks.append(block.between(start, stop))
        self.documents += stop - start
        self._work += int(block.work[stop] - block.work[start])
        self._tokens += int(block.tokens[stop] - block.tokens[start])
        return stop

    def close(self, *, last: bool) -> Slice:
        """Return the slice, and begin the next one after it."""
        number = self._unit.number
        tables = _without_duplicates(number, DocumentTables.concat(self._blocks))
        full = Slice(number, self.first, self.documents, last, *tables)
        self.first, self._blocks = self.next_document, []
        self.documents = self._work = self._tokens = 0
        return full


def unreadable_slice(unit: int, first: int, reason: str) -> Slice:
    """Return a slice that stands for the unreadable documents of a unit from `first` on."""
    rejects = reject_table([(None, unit, first, "unreadable_unit", reason)])
    nothing = PASSAGE_SCHEMA.append(pa.field(TOKENS_COLUMN, pa.list_(pa.int32()))).empty_table()
    ledger, unchanged = DOCUMENTS_SCHEMA.empty_table(), UNCHANGED_SCHEMA.empty_table()
    return Slice(unit, first, 0, True, nothing, ledger, rejects, unchanged, unreadable=True)


def _without_duplicates(unit: int, tables: DocumentTables) -> DocumentTables:
    """Keep the first document of each id; turn the others into rejects."""
    ledger = tables.ledger
    keep = ~pd.Series(ledger["doc_id"].to_pylist(), dtype=object).duplicated().to_numpy()
    if keep.all():
        return tables
    more = reject_table(
        (row["doc_id"], unit, row["position"], *duplicate_of("in the same slice"))
        for row in ledger.select(["doc_id", "position"]).filter(pa.array(~keep)).to_pylist()
    )
    keep_rows = np.repeat(keep, ledger["n_rows"].to_numpy())
    return tables._replace(
        passages=tables.passages.filter(pa.array(keep_rows)),
        ledger=ledger.filter(pa.array(keep)),
        rejects=pa.concat_tables([tables.rejects, more]),
    )


def _nest(table: pa.Table) -> pa.ListArray:
    struct = table.combine_chunks().to_struct_array().combine_chunks()
    return pa.ListArray.from_arrays(pa.array([0, len(struct)], pa.int32()), struct)


def _unnest(column: pa.ChunkedArray) -> pa.Table:
    return pa.Table.from_struct_array(column.combine_chunks().flatten())
