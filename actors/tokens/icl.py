"""Tokenise queries for in-context learning (bge-en-icl), with examples before and a suffix after.

As in FlagEmbedding 1.4.2 (ICLLLMEmbedder.encode_queries_single_device), the formatted query is
tokenised without special tokens, truncated so that query and suffix fit `max_length`, and decoded.
Examples, query and suffix are then tokenised as one text, truncated to a length with room for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from actors.models.files import ModelFiles
from actors.models.prompts import Prompts
from actors.tokens.tokenizer import TextTokenizer, TokenizedTexts
from actors.tokens.tokenizer_files import load_tokenizer


def query_tokenizer(files: ModelFiles) -> TextTokenizer | IclQueryTokenizer:
    """Return the tokenizer for a model's queries."""
    prompts = files.prompts
    if prompts.query_suffix or prompts.examples:
        return IclQueryTokenizer(files.folder, files.query_max_length, prompts)
    return TextTokenizer(files.folder, files.query_max_length, prompts.query)


class IclQueryTokenizer:
    """A query tokenizer with the `tokenize` method of `TextTokenizer`."""

    def __init__(self, folder: Path, max_length: int, prompts: Prompts) -> None:
        """`max_length`: limit of the query without the examples, in tokens."""
        self._tokenizer = load_tokenizer(folder)
        self._prompts = prompts
        own = len(self._bare("<s>")) + len(self._bare(f"{prompts.query_suffix}</s>"))
        self._query_tokens = max(max_length - own, 0)
        around = len(self._bare(prompts.examples)) + len(self._bare(prompts.query_suffix))
        self.max_length = (around + max_length + 8) // 8 * 8 + 8

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Return the token ids of each query, special tokens included."""
        queries, cut = [], []
        for text in texts:
            ids = self._bare(self._prompts.query.around(text))
            cut.append(len(ids) > self._query_tokens)
            kept = ids[: self._query_tokens]
            query = self._tokenizer.decode(kept, skip_special_tokens=False)
            queries.append(f"{self._prompts.examples}{query}{self._prompts.query_suffix}")
        self._tokenizer.enable_truncation(self.max_length)
        encodings = self._tokenizer.encode_batch_fast(queries)
        self._tokenizer.no_truncation()
        rows = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        truncated = [c or bool(e.overflowing) for c, e in zip(cut, encodings, strict=True)]
        return TokenizedTexts.from_rows(rows, truncated)

    def _bare(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids
