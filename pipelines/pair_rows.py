"""Pairs of a query and a passage as rows: a pair is a document of one passage."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa

from actors.rerank.checkpoint import RerankerFiles
from actors.rerank.pair_tokens import PairTokens
from actors.rerank.pairs import load_pair_tokenizer
from actors.tokenizer import TOKENS_COLUMN
from pipelines.blocks import BlockBuilder, Fault, Rows, hash_of
from pipelines.config_pairs import PairsConfig
from pipelines.schemas import HASH


class PairRows:
    """A `RowMaker`: tokenises pairs as their reranker wants them."""

    def __init__(self, config: PairsConfig, files: RerankerFiles) -> None:
        """Load the tokenizer.

        Raises:
            ModelError: lengths that leave no room for a passage.
        """
        self._tokenizer = load_pair_tokenizer(files, config.reranker)
        self._query = config.source.columns.query
        self._refuses = config.reranker.too_long == "refuse"
        self._max_length = config.reranker.max_length
        self._store_text = config.index.store_text

    def faults(self, documents: pa.Table) -> list[Fault | None]:
        """A pair needs an id and two texts, with or without a word in them."""
        columns = (documents[name].to_pylist() for name in ("doc_id", self._query, "text"))
        faults = [_pair_fault(*row) for row in zip(*columns, strict=True)]
        if self._refuses:
            good = [row for row, fault in enumerate(faults) if fault is None]
            cut = self._tokens(documents.take(pa.array(good, pa.int64()))).truncated
            for row in np.array(good)[cut].tolist():
                faults[row] = ("too_long", f"more than {self._max_length} tokens")
        return faults

    def rows(self, documents: pa.Table) -> Rows:
        """As `RowMaker`: a row a pair."""
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
    """What makes blocks of pairs.

    Raises:
        ModelError: lengths that leave no room for a passage.
    """
    return BlockBuilder(PairRows(config, files), config.source.columns.copied)


def _pair_fault(pair_id: str | None, query: str | None, passage: str | None) -> Fault | None:
    if not pair_id:
        return "missing_id", ""
    if query is None:
        return "null_query", ""
    return ("null_text", "") if passage is None else None


def _pair_hashes(tokens: PairTokens) -> list[bytes]:
    """Of the exact input: where the passage begins, and the token ids as little-endian int32."""
    values = tokens.values.astype("<i4", copy=False)
    starts = tokens.passage_starts.astype("<i4")
    ends = tokens.offsets.tolist()
    return [
        hash_of(start.tobytes() + values[a:b].tobytes())
        for start, (a, b) in zip(starts, itertools.pairwise(ends), strict=True)
    ]
