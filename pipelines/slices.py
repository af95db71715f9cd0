"""Read, chunk and tokenise one unit, and cut it into slices: what a CPU task of the pipeline does.

A slice is a run of documents, cut always in the same place: at so many documents or so many tokens,
whichever comes first. So slices depend neither on the cluster nor on what was done before.
One slice is one row of the dataset; its passages are a nested column, with the final output columns
already in place, so that ColBERT vectors never have to cross the object store.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from actors.model_files import ModelFiles, resolve_model
from pipelines.blocks import BlockBuilder
from pipelines.config import RunConfig
from pipelines.plan import unit_of
from pipelines.records import reject_table
from pipelines.source import Source, Unit


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
    """doc_id, doc_hash, position, n_rows, n_tokens of each document that has passages."""
    rejects: pa.Table

    def to_row(self) -> pa.Table:
        """As one row: what travels between tasks."""
        return pa.table(
            {
                "unit": pa.array([self.unit], pa.int32()),
                "first_document": pa.array([self.first_document], pa.int64()),
                "documents": pa.array([self.documents], pa.int64()),
                "last": pa.array([self.last]),
                "passages": _nest(self.passages),
                "ledger": _nest(self.ledger),
                "rejects": _nest(self.rejects),
            }
        )

    @staticmethod
    def from_row(row: pa.Table) -> Slice:
        """The inverse of `to_row`; no buffer is copied."""
        assert row.num_rows == 1, f"expected one slice a call, got {row.num_rows}"
        return Slice(
            unit=row["unit"][0].as_py(),
            first_document=row["first_document"][0].as_py(),
            documents=row["documents"][0].as_py(),
            last=row["last"][0].as_py(),
            passages=_unnest(row["passages"]),
            ledger=_unnest(row["ledger"]),
            rejects=_unnest(row["rejects"]),
        )


class SliceReader:
    """Yields the slices of units that are not done yet."""

    def __init__(self, config: RunConfig) -> None:
        # One task is one CPU; the tokenizer's own threads would fight its neighbours'.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._config = config
        self._source = Source(config.source)
        self._builder = BlockBuilder(config, resolve_model(config.encoder))

    def slices(self, unit: Unit, start: int, stop: int) -> Iterator[Slice]:
        """The slices of documents [start, stop) of a unit; `start` must be a slice's first."""
        max_documents, max_tokens = self._config.slice.documents, self._config.slice_max_tokens
        first, blocks, documents, tokens = start, [], 0, 0
        for batch in self._source.read(unit, start, stop):
            block = self._builder.build(batch, unit.number, first + documents)
            done = 0
            while done < len(block):
                # The document that reaches the token limit still belongs to the slice.
                reached = block.tokens[done] + max_tokens - tokens
                end = min(
                    done + max_documents - documents,
                    max(int(np.searchsorted(block.tokens, reached)), done + 1),
                    len(block),
                )
                blocks.append(block.between(done, end))
                documents += end - done
                tokens += int(block.tokens[end] - block.tokens[done])
                done = end
                if documents >= max_documents or tokens >= max_tokens:
                    yield _assemble(unit, first, documents, blocks)
                    first, blocks, documents, tokens = first + documents, [], 0, 0
        if documents:
            yield _assemble(unit, first, documents, blocks)
        elif unit.documents == 0:
            empty = self._builder.build(self._source.no_documents(unit), unit.number, 0)
            yield _assemble(unit, 0, 0, [empty.between(0, 0)])


def read_slices(batch: pa.Table, config: RunConfig) -> Iterator[pa.Table]:
    """Rows of `todo_table` in, one-row tables (`Slice.to_row`) out."""
    reader = _cached_reader(config.model_dump_json())
    for row in batch.to_pylist():
        for start, stop in row["todo"]:
            for piece in reader.slices(unit_of(row), start, stop):
                yield piece.to_row()


@functools.lru_cache(maxsize=1)
def _cached_reader(config: str) -> SliceReader:
    """A worker process reads many units: it loads the tokenizer once."""
    return SliceReader(RunConfig.model_validate_json(config))


def check_chunking(config: RunConfig, files: ModelFiles) -> None:
    """Fail before a cluster is started.

    Raises:
        ConfigError: passages that the model cannot hold.
    """
    BlockBuilder(config, files)


def _assemble(
    unit: Unit, first: int, documents: int, blocks: Sequence[tuple[pa.Table, pa.Table, pa.Table]]
) -> Slice:
    passages, ledger, rejects = (pa.concat_tables(tables) for tables in zip(*blocks, strict=True))
    passages, ledger, rejects = _without_duplicates(unit.number, passages, ledger, rejects)
    last = first + documents == unit.documents
    return Slice(unit.number, first, documents, last, passages, ledger, rejects)


def _without_duplicates(
    unit: int, passages: pa.Table, ledger: pa.Table, rejects: pa.Table
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """The first document of each id stays, the others become rejects."""
    ids = ledger["doc_id"].to_pylist()
    if len(set(ids)) == len(ids):
        return passages, ledger, rejects
    first_row = {doc_id: row for row, doc_id in reversed(list(enumerate(ids)))}
    keep = np.array([first_row[doc_id] for doc_id in ids]) == np.arange(len(ids))
    lost = ledger.filter(pa.array(~keep))
    more = reject_table(
        (doc_id, unit, position, "duplicate_id", "in the same slice")
        for doc_id, position in zip(
            lost["doc_id"].to_pylist(), lost["position"].to_pylist(), strict=True
        )
    )
    keep_rows = np.repeat(keep, ledger["n_rows"].to_numpy())
    return (
        passages.filter(pa.array(keep_rows)),
        ledger.filter(pa.array(keep)),
        pa.concat_tables([rejects, more]),
    )


def _nest(table: pa.Table) -> pa.ListArray:
    struct = table.combine_chunks().to_struct_array().combine_chunks()
    return pa.ListArray.from_arrays(pa.array([0, len(struct)], pa.int32()), struct)


def _unnest(column: pa.ChunkedArray) -> pa.Table:
    return pa.Table.from_struct_array(column.combine_chunks().flatten())
