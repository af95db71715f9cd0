"""A batch of documents as passages: the output columns without vectors, ledger and rejects.

Knows nothing of slices: where they end is decided over the block's cumulative counts.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.model_files import ModelFiles
from actors.tokenizer import TOKENS_COLUMN, TextTokenizer, TokenizedTexts
from pipelines.chunking import Chunker, Passages
from pipelines.config import RunConfig
from pipelines.formats.base import DocumentBatch
from pipelines.records import HASH, RejectCode, reject_table

DOCUMENTS_SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("doc_hash", HASH),
        ("position", pa.int64()),
        ("n_rows", pa.int32()),
        ("n_tokens", pa.int64()),
    ]
)


@dataclass(frozen=True)
class DocumentBlock:
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


class BlockBuilder:
    """Chunks and tokenises documents as a configuration says."""

    def __init__(self, config: RunConfig, files: ModelFiles) -> None:
        """Load the tokenizer.

        Raises:
            ConfigError: passages that the model cannot hold.
        """
        tokenizer = TextTokenizer(files.folder, files.max_length, files.prompts.passage)
        self._chunker = Chunker(config.chunk, tokenizer)
        self._metadata = config.source.columns.metadata
        self._store_text = config.index.store_text

    def build(self, batch: DocumentBatch, unit: int, position: int) -> DocumentBlock:
        """The block of documents that begins at `position` of a unit."""
        documents = batch.table
        ids, texts = documents["doc_id"].to_pylist(), documents["text"].to_pylist()
        faults = [
            batch.faults.get(row) or _fault(doc_id, text)
            for row, (doc_id, text) in enumerate(zip(ids, texts, strict=True))
        ]
        is_good = np.array([fault is None for fault in faults], dtype=bool)
        chosen = documents.filter(pa.array(is_good))
        passages = self._chunker.passages(chosen["text"].to_pylist(), chosen["title"].to_pylist())
        per_document = np.bincount(passages.document, minlength=chosen.num_rows)
        tokens_of = np.bincount(
            passages.document, weights=passages.tokens.lengths, minlength=chosen.num_rows
        ).astype(np.int64)
        good = _cumulative(is_good)
        rejects = [
            (ids[row], unit, position + row, *fault)
            for row, fault in enumerate(faults)
            if fault is not None
        ]
        ledger = [
            chosen["doc_id"],
            pa.array(self._document_hashes(chosen), HASH),
            pa.array(position + np.flatnonzero(is_good)),
            pa.array(per_document.astype(np.int32)),
            pa.array(tokens_of),
        ]
        return DocumentBlock(
            passages=self._passage_columns(chosen, passages, per_document),
            ledger=pa.table(ledger, schema=DOCUMENTS_SCHEMA),
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
        if self._store_text:
            columns["text"] = pa.array(passages.texts, pa.string())
        columns |= {
            "title": documents["title"].take(document),
            "n_tokens": pa.array(passages.tokens.lengths),
            "truncated": pa.array(passages.tokens.truncated),
            "char_start": pa.array(passages.start),
            "char_end": pa.array(passages.end),
            "passage_hash": pa.array(_passage_hashes(passages.tokens), HASH),
        }
        for name in self._metadata:
            columns[name] = documents[name].take(document)
        return pa.table(columns | {TOKENS_COLUMN: passages.tokens.to_arrow()})

    def _document_hashes(self, documents: pa.Table) -> list[bytes]:
        """Of title, text and stored metadata, without the id: what re-indexing compares."""
        names = ["title", "text", *self._metadata]
        values = zip(*(_plain(documents[name]) for name in names), strict=True)
        return [_hash(json.dumps(row, ensure_ascii=False, default=str).encode()) for row in values]


def _plain(column: pa.ChunkedArray) -> list[Any]:
    """Python values to hash; times as integers, since Python's end with the year 9999."""
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.int32() if column.type.bit_width == 32 else pa.int64())
    return column.to_pylist()  # type: ignore[no-any-return]


def _fault(doc_id: str | None, text: str | None) -> tuple[RejectCode, str] | None:
    if not doc_id:
        return "missing_id", ""
    if text is None:
        return "null_text", ""
    return None if text.strip() else ("empty_text", "")


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _passage_hashes(tokens: TokenizedTexts) -> list[bytes]:
    """Of the exact encoder input: the token ids as little-endian int32."""
    values = tokens.values.astype("<i4", copy=False)
    ends = tokens.offsets.tolist()
    return [_hash(values[a:b].tobytes()) for a, b in itertools.pairwise(ends)]


def _cumulative(counts: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
