"""Documents into passages: where each begins and ends, in characters.

Boundaries come from semantic-text-splitter: paragraphs, then sentences, words, characters, each
only where the larger does not fit. The budget is exact: it is counted on the passage's own text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from semantic_text_splitter import TextSplitter

from actors.errors import ConfigError
from actors.tokenizer import TextTokenizer, TokenizedTexts
from pipelines.config import ChunkConfig


@dataclass(frozen=True)
class Passages:
    """The passages of several documents, end to end."""

    document: np.ndarray
    """int64: which of the documents each passage belongs to."""
    start: np.ndarray
    """int32: first character in the document."""
    end: np.ndarray
    """int32: one past the last character."""
    texts: list[str]
    """document[start:end]."""
    tokens: TokenizedTexts
    """Of each passage's own text."""


class Chunker:
    """Cuts and tokenises documents as a configuration says."""

    def __init__(self, config: ChunkConfig, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._splitter: TextSplitter | None = None
        self.max_tokens = config.max_tokens or tokenizer.max_length
        if self.max_tokens > tokenizer.max_length:
            raise ConfigError(
                f"chunk.max_tokens: expected at most {tokenizer.max_length} (model.max_length), "
                f"got {self.max_tokens}."
            )
        if config.by == "none":
            return
        room = self.max_tokens - tokenizer.overhead
        if room < 1 or config.overlap >= room:
            raise ConfigError(
                f"chunk: expected max_tokens above overlap ({config.overlap}) and the "
                f"{tokenizer.overhead} special and instruction tokens, got {self.max_tokens}."
            )
        self._splitter = TextSplitter.from_huggingface_tokenizer(
            tokenizer.without_truncation(), room, overlap=config.overlap
        )

    def passages(self, documents: Sequence[str]) -> Passages:
        """The passages of each document, in order; whitespace at their ends is left out.

        A document that is nothing but whitespace has no passage.
        """
        spans = [_stripped(text) for text in documents]
        whole = [text[start:end] for text, (start, end) in zip(documents, spans, strict=True)]
        tokens = self._tokenizer.tokenize(whole)
        too_long = (tokens.lengths > self.max_tokens) | tokens.truncated
        pieces = [
            _split(self._splitter, text, span[0])
            if long and self._splitter
            else [span][: span[0] < span[1]]
            for text, span, long in zip(whole, spans, too_long, strict=True)
        ]
        document = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
        flat = np.array([span for piece in pieces for span in piece], dtype=np.int32).reshape(-1, 2)
        texts = [
            documents[i][start:end]
            for i, (start, end) in zip(document.tolist(), flat.tolist(), strict=True)
        ]
        if texts != whole:
            tokens = self._tokenizer.tokenize(texts)
        return Passages(document, flat[:, 0], flat[:, 1], texts, tokens)


def _stripped(text: str) -> tuple[int, int]:
    start = len(text) - len(text.lstrip())
    return start, max(len(text.rstrip()), start)


def _split(splitter: TextSplitter, text: str, offset: int) -> list[tuple[int, int]]:
    return [
        (offset + start, offset + start + len(chunk))
        for start, chunk in splitter.chunk_indices(text)
    ]
