"""Read, chunk and tokenise one unit, and cut it into slices.

A slice is a run of documents, cut always in the same place: at so many documents or so many tokens,
whichever comes first. So slices depend neither on the cluster nor on what was done before.
One slice is one row of the dataset; its passages are a nested column, with the final output columns
already in place, so that ColBERT vectors never have to cross the object store.
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
"""A slice's limit is on documents that have to be done; of all, it has so many times more."""


@dataclass(frozen=True)
class Slice:
    """One slice, ready to be encoded."""

    unit: int
    first_document: int
    documents: int
    """Input rows, rejects included."""
    last: bool
    """It ends its unit."""
    passages: pa.Table
    """Output columns without vectors, and `input_ids`; rows in document order."""
    ledger: pa.Table
    """Of each document that has passages; schema: DOCUMENTS_SCHEMA."""
    rejects: pa.Table
    unchanged: pa.Table
    """Of documents that the index has as they are; schema: UNCHANGED_SCHEMA."""
    unreadable: bool = False
    """The unit could not be read from here on; the one reject says why."""

    def to_row(self) -> pa.Table:
        """As one row: what travels between tasks."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return pa.table(
            {
                name: _nest(value) if isinstance(value, pa.Table) else pa.array([value])
                for name, value in values.items()
            }
        )

    @staticmethod
    def from_row(row: pa.Table) -> Slice:
        """The inverse of `to_row`; no buffer is copied."""
        assert row.num_rows == 1, f"expected one slice a call, got {row.num_rows}"
        columns = zip(row.column_names, row.columns, strict=True)
        return Slice(
            **{
                name: _unnest(column) if pa.types.is_list(column.type) else column[0].as_py()
                for name, column in columns
            }
        )

    def edited(self) -> list[tuple[str, int, int]]:
        """Part, first row and rows of what the index has of documents that are other ones now."""
        old = self.ledger.filter(pc.is_valid(self.ledger["old_part"]))
        names = ("old_part", "old_first_row", "old_n_rows")
        return list(zip(*(old[name].to_pylist() for name in names), strict=True))


class SliceReader:
    """Yields the slices of units that are not done yet."""

    def __init__(
        self, source: Source, builder: BlockBuilder, max_documents: int, max_tokens: int
    ) -> None:
        """A slice ends at `max_documents` documents or `max_tokens` tokens, whichever is first."""
        # One task is one CPU; the tokenizer's own threads would fight its neighbours'.
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
        """The slices of documents [start, stop) of a unit; `start` must be a slice's first.

        `known`: what the index has already. Where the unit cannot be read, the last slice is one
        that says so.
        """
        pending = _Pending(unit, start, *self._limits)
        try:
            for batch in self._source.read(unit, start, stop):
                block = self._builder.build(batch, unit.number, pending.next_document, known)
                done = 0
                while done < len(block):
                    if pending.is_full:  # only now it is known not to be the last
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
        """Position in the unit of the next document."""
        return self.first + self.documents

    @property
    def is_full(self) -> bool:
        """A limit is reached: the document that reaches the token limit still belongs to it."""
        return (
            self._work >= self._max_documents
            or self.documents >= self._max_documents * _UNCHANGED_PER_DOCUMENT
            or self._tokens >= self._max_tokens
        )

    def take(self, block: DocumentBlock, start: int) -> int:
        """Add documents of a block, from `start` on, as many as fit; returns where it stopped."""
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
        """The slice; the next one begins after it."""
        number = self._unit.number
        tables = _without_duplicates(number, DocumentTables.concat(self._blocks))
        full = Slice(number, self.first, self.documents, last, *tables)
        self.first, self._blocks = self.next_document, []
        self.documents = self._work = self._tokens = 0
        return full


def unreadable_slice(unit: int, first: int, reason: str) -> Slice:
    """What stands for the documents of a unit from `first` on when they cannot be read."""
    rejects = reject_table([(None, unit, first, "unreadable_unit", reason)])
    nothing = PASSAGE_SCHEMA.append(pa.field(TOKENS_COLUMN, pa.list_(pa.int32()))).empty_table()
    ledger, unchanged = DOCUMENTS_SCHEMA.empty_table(), UNCHANGED_SCHEMA.empty_table()
    return Slice(unit, first, 0, True, nothing, ledger, rejects, unchanged, unreadable=True)


def _without_duplicates(unit: int, tables: DocumentTables) -> DocumentTables:
    """The first document of each id stays, the others become rejects."""
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
