"""Documents as passages: chunked, tokenised, their text beside them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from actors.model_files import ModelFiles
from actors.tokenizer import TOKENS_COLUMN, TextTokenizer, TokenizedTexts
from pipelines.blocks import BlockBuilder, Fault, Rows, hash_of
from pipelines.chunking import Chunker
from pipelines.config_pairs import RunConfig
from pipelines.schemas import HASH


class PassageRows:
    """A `RowMaker`: chunks as a configuration says."""

    def __init__(self, config: RunConfig, files: ModelFiles) -> None:
        """Load the tokenizer.

        Raises:
            ConfigError: passages that the model cannot hold.
        """
        tokenizer = TextTokenizer(files.folder, files.max_length, files.prompts.passage)
        self._chunker = Chunker(config.chunk, tokenizer)
        self._store_text = config.index.store_text

    def faults(self, documents: pa.Table) -> list[Fault | None]:
        """A document needs an id, and a text with something in it."""
        columns = (documents[name].to_pylist() for name in ("doc_id", "text"))
        return [_fault(*row) for row in zip(*columns, strict=True)]

    def rows(self, documents: pa.Table) -> Rows:
        """As `RowMaker`: a row a passage."""
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
    """What makes blocks of a corpus.

    Raises:
        ConfigError: passages that the model cannot hold.
    """
    return BlockBuilder(PassageRows(config, files), config.source.columns.copied)


def _fault(doc_id: str | None, text: str | None) -> Fault | None:
    if not doc_id:
        return "missing_id", ""
    if text is None:
        return "null_text", ""
    return None if text.strip() else ("empty_text", "")


def _passage_hashes(tokens: TokenizedTexts) -> Sequence[bytes]:
    """Of the exact encoder input: the token ids as little-endian int32."""
    values = tokens.values.astype("<i4", copy=False)
    ends = tokens.offsets.tolist()
    return [hash_of(values[a:b].tobytes()) for a, b in itertools.pairwise(ends)]
