"""Turns documents into rows: chunked and tokenised passages, or tokenised pairs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from actors.models.files import ModelFiles
from actors.models.reranker_files import RerankerFiles
from actors.tokens.pair_tokens import PairTokens
from actors.tokens.pairs import load_pair_tokenizer
from actors.tokens.tokenizer import TOKENS_COLUMN, TextTokenizer, TokenizedTexts
from pipelines.config.run import PairsConfig, RunConfig
from pipelines.index.schemas import HASH
from pipelines.passages.blocks import BlockBuilder, Fault, Rows, hash_of
from pipelines.passages.chunker import Chunker


class PassageRows:
    """`RowMaker` that chunks documents into passages."""

    def __init__(self, config: RunConfig, files: ModelFiles) -> None:
        """Load the tokenizer; raise the errors of `passage_blocks`."""
        tokenizer = TextTokenizer(files.folder, files.max_length, files.prompts.passage)
        self._chunker = Chunker(config.chunk, tokenizer)
        self._store_text = config.index.store_text

    def faults(self, documents: pa.Table) -> list[Fault | None]:
        """Return the fault of each document that has no id or no text."""
        columns = (documents[name].to_pylist() for name in ("doc_id", "text"))
        return [text_fault(*row) for row in zip(*columns, strict=True)]

    def rows(self, documents: pa.Table) -> Rows:
        """Return one row for each passage."""
        texts, titles = (documents[name].to_pylist() for name in ("text", "title"))
        passages = self._chunker.passages(texts, titles)
        columns: dict[str, Any] = {}
        if self._store_text:
            columns["text"] = pa.array(passages.texts, pa.string())
        columns |= {
            "title": documents["title"].take(pa.array(passages.document)),
            "n_tokens": pa.array(passages.tokens.lengths),
            "truncated": pa.array(passages.tokens.truncated),
            "char_start": pa.array(passages.start),
            "char_end": pa.array(passages.end),
            "passage_hash": pa.array(_passage_hashes(passages.tokens), HASH),
            TOKENS_COLUMN: passages.tokens.to_arrow(),
        }
        return Rows(passages.document, passages.tokens.lengths, pa.table(columns))


def passage_blocks(config: RunConfig, files: ModelFiles) -> BlockBuilder:
    """Return the builder of a corpus's blocks.

    Raises:
        ConfigError: the configured passages do not fit the model.
    """
    return BlockBuilder(PassageRows(config, files), config.source.columns.copied)


def text_fault(doc_id: str | None, text: str | None) -> Fault | None:
    """Return the fault of a document with this id and text, None if it is valid."""
    if not doc_id:
        return "missing_id", ""
    if text is None:
        return "null_text", ""
    return None if text.strip() else ("empty_text", "")


def _passage_hashes(tokens: TokenizedTexts) -> Sequence[bytes]:
    """Hash the exact encoder input of each passage: token ids as little-endian int32."""
    values = tokens.values.astype("<i4", copy=False)
    ends = tokens.offsets.tolist()
    return [hash_of(values[a:b].tobytes()) for a, b in itertools.pairwise(ends)]


class PairRows:
    """`RowMaker` that tokenises pairs in the reranker's input format."""

    def __init__(self, config: PairsConfig, files: RerankerFiles) -> None:
        """Load the tokenizer; raise the errors of `pair_blocks`."""
        self._tokenizer = load_pair_tokenizer(files, config.reranker)
        self._query = config.source.columns.query
        self._refuses = config.reranker.too_long == "refuse"
        self._max_length = config.reranker.max_length
        self._store_text = config.index.store_text

    def faults(self, documents: pa.Table) -> list[Fault | None]:
        """Return the fault of each pair that lacks an id or a text; an empty text is valid."""
        columns = (documents[name].to_pylist() for name in ("doc_id", self._query, "text"))
        faults = [_pair_fault(*row) for row in zip(*columns, strict=True)]
        if self._refuses:
            good = [row for row, fault in enumerate(faults) if fault is None]
            cut = self._tokens(documents.take(pa.array(good, pa.int64()))).truncated
            for row in np.array(good)[cut].tolist():
                faults[row] = ("too_long", f"more than {self._max_length} tokens")
        return faults

    def rows(self, documents: pa.Table) -> Rows:
        """Return one row for each pair."""
        tokens = self._tokens(documents)
        lengths = tokens.lengths.astype(np.int32)
        columns: dict[str, Any] = {}
        if self._store_text:
            columns["text"] = documents["text"]
        columns |= {
            "title": documents["title"],
            "n_tokens": pa.array(lengths),
            "truncated": pa.array(tokens.truncated),
            "char_start": pa.array(np.zeros(len(lengths), np.int32)),
            "char_end": pa.array([len(t) for t in documents["text"].to_pylist()], pa.int32()),
            "passage_hash": pa.array(_pair_hashes(tokens), HASH),
            TOKENS_COLUMN: tokens.to_arrow(),
        }
        return Rows(np.arange(len(lengths)), lengths, pa.table(columns))

    def _tokens(self, documents: pa.Table) -> PairTokens:
        columns = (documents[name].to_pylist() for name in (self._query, "text"))
        return self._tokenizer.tokenize(list(zip(*columns, strict=True)))


def pair_blocks(config: PairsConfig, files: RerankerFiles) -> BlockBuilder:
    """Return the builder of blocks of pairs.

    Raises:
        ModelError: the configured lengths leave no room for a passage.
    """
    return BlockBuilder(PairRows(config, files), config.source.columns.copied)


def _pair_fault(pair_id: str | None, query: str | None, passage: str | None) -> Fault | None:
    if not pair_id:
        return "missing_id", ""
    if query is None:
        return "null_query", ""
    return ("null_text", "") if passage is None else None


def _pair_hashes(tokens: PairTokens) -> list[bytes]:
    """Hash the exact input of each pair: passage start and token ids as little-endian int32."""
    values = tokens.values.astype("<i4", copy=False)
    starts = tokens.passage_starts.astype("<i4")
    ends = tokens.offsets.tolist()
    return [
        hash_of(start.tobytes() + values[a:b].tobytes())
        for start, (a, b) in zip(starts, itertools.pairwise(ends), strict=True)
    ]
