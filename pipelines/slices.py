"""Read, chunk and tokenise one unit, and cut it into slices: what a CPU task of the pipeline does.

A slice is a run of documents, cut always in the same place: at so many documents or so many tokens,
whichever comes first. So slices depend neither on the cluster nor on what was done before.
One slice is one row of the dataset; its passages are a nested column, with the final output columns
already in place, so that ColBERT vectors never have to cross the object store.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.model_files import ModelFiles, resolve_model
from actors.tokenizer import TOKENS_COLUMN, TextTokenizer, TokenizedTexts
from pipelines.chunking import Chunker, Passages
from pipelines.config import RunConfig
from pipelines.plan import unit_of
from pipelines.records import HASH, RejectCode, reject_table
from pipelines.source import Source, Unit

_DOCUMENTS_SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("doc_hash", HASH),
        ("position", pa.int64()),
        ("n_rows", pa.int32()),
        ("n_tokens", pa.int64()),
    ]
)


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


@dataclass(frozen=True)
class _Block:
    """A batch of documents, chunked and tokenised; each array is cumulative: [documents + 1]."""

    passages: pa.Table
    ledger: pa.Table
    rejects: pa.Table
    rows: np.ndarray
    good: np.ndarray
    tokens: np.ndarray

    def __len__(self) -> int:
        return len(self.rows) - 1

    def between(self, start: int, stop: int) -> tuple[pa.Table, pa.Table, pa.Table]:
        """Passages, ledger and rejects of documents [start, stop)."""
        bad = np.arange(len(self.good)) - self.good
        return tuple(
            table.slice(ends[start], ends[stop] - ends[start])
            for table, ends in (
                (self.passages, self.rows),
                (self.ledger, self.good),
                (self.rejects, bad),
            )
        )


class SliceReader:
    """Yields the slices of units that are not done yet."""

    def __init__(self, config: RunConfig) -> None:
        # One task is one CPU; the tokenizer's own threads would fight its neighbours'.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._config = config
        self._source = Source(config.source)
        self._chunker = _chunker(config, resolve_model(config.encoder))

    def slices(self, unit: Unit, start: int, stop: int) -> Iterator[Slice]:
        """The slices of documents [start, stop) of a unit; `start` must be a slice's first."""
        max_documents, max_tokens = self._config.slice.documents, self._config.slice_max_tokens
        first, blocks, documents, tokens = start, [], 0, 0
        for batch in self._source.read(unit, start, stop):
            block = self._prepare(batch, unit.number, first + documents)
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
            empty = self._prepare(self._source.no_documents(unit), unit.number, 0)
            yield _assemble(unit, 0, 0, [empty.between(0, 0)])

    def _prepare(self, documents: pa.Table, unit: int, position: int) -> _Block:
        ids, texts = documents["doc_id"].to_pylist(), documents["text"].to_pylist()
        codes = [_reject_code(i, text) for i, text in zip(ids, texts, strict=True)]
        is_good = np.array([code is None for code in codes], dtype=bool)
        chosen = documents.filter(pa.array(is_good))
        passages = self._chunker.passages(chosen["text"].to_pylist())
        per_document = np.bincount(passages.document, minlength=chosen.num_rows)
        tokens_of = np.bincount(
            passages.document, weights=passages.tokens.lengths, minlength=chosen.num_rows
        ).astype(np.int64)
        good = _cumulative(is_good)
        rejects = [
            (ids[row], unit, position + row, code, "")
            for row, code in enumerate(codes)
            if code is not None
        ]
        ledger = [
            chosen["doc_id"],
            pa.array(self._document_hashes(chosen), HASH),
            pa.array(position + np.flatnonzero(is_good)),
            pa.array(per_document.astype(np.int32)),
            pa.array(tokens_of),
        ]
        return _Block(
            passages=self._passage_columns(chosen, passages, per_document),
            ledger=pa.table(ledger, schema=_DOCUMENTS_SCHEMA),
            rejects=reject_table(rejects),
            rows=_cumulative(per_document)[good],
            good=good,
            tokens=_cumulative(tokens_of)[good],
        )

    def _passage_columns(
        self, documents: pa.Table, passages: Passages, per_document: np.ndarray
    ) -> pa.Table:
        document = pa.array(passages.document)
        firsts = np.repeat(_cumulative(per_document)[:-1], per_document)
        numbers = pa.array((np.arange(len(firsts)) - firsts).astype(np.int32))
        ids = documents["doc_id"].take(document)
        columns: dict[str, Any] = {
            "doc_id": ids,
            "passage_id": pc.binary_join_element_wise(ids, numbers.cast(pa.string()), "#"),
            "passage_no": numbers,
        }
        if self._config.index.store_text:
            columns["text"] = pa.array(passages.texts, pa.string())
        columns |= {
            "title": documents["title"].take(document),
            "n_tokens": pa.array(passages.tokens.lengths),
            "truncated": pa.array(passages.tokens.truncated),
            "char_start": pa.array(passages.start),
            "char_end": pa.array(passages.end),
            "passage_hash": pa.array(_passage_hashes(passages.tokens), HASH),
        }
        for name in self._config.source.columns.metadata:
            columns[name] = documents[name].take(document)
        return pa.table(columns | {TOKENS_COLUMN: passages.tokens.to_arrow()})

    def _document_hashes(self, documents: pa.Table) -> list[bytes]:
        """Of title, text and stored metadata, without the id: what re-indexing compares."""
        names = ["title", "text", *self._config.source.columns.metadata]
        values = zip(*(documents[name].to_pylist() for name in names), strict=True)
        return [_hash(json.dumps(row, ensure_ascii=False, default=str).encode()) for row in values]


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
    _chunker(config, files)


def _chunker(config: RunConfig, files: ModelFiles) -> Chunker:
    tokenizer = TextTokenizer(files.folder, files.max_length, config.model.passage_instruction)
    return Chunker(config.chunk, tokenizer)


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


def _reject_code(doc_id: str | None, text: str | None) -> RejectCode | None:
    if not doc_id:
        return "missing_id"
    if text is None:
        return "null_text"
    return None if text.strip() else "empty_text"


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _passage_hashes(tokens: TokenizedTexts) -> list[bytes]:
    """Of the exact encoder input: the token ids as little-endian int32."""
    values = tokens.values.astype("<i4", copy=False)
    ends = tokens.offsets.tolist()
    return [_hash(values[a:b].tobytes()) for a, b in itertools.pairwise(ends)]


def _cumulative(counts: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))


def _nest(table: pa.Table) -> pa.ListArray:
    struct = table.combine_chunks().to_struct_array().combine_chunks()
    return pa.ListArray.from_arrays(pa.array([0, len(struct)], pa.int32()), struct)


def _unnest(column: pa.ChunkedArray) -> pa.Table:
    return pa.Table.from_struct_array(column.combine_chunks().flatten())
