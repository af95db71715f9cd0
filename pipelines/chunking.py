"""Documents into passages: where each begins and ends, in characters.

Boundaries come from semantic-text-splitter: paragraphs, then sentences, words, characters, each
only where the larger does not fit. The budget is exact: it is counted on the passage's own text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from semantic_text_splitter import TextSplitter

from actors.errors import ConfigError
from actors.tokenizer import TextTokenizer, TokenizedTexts
from pipelines.config import ChunkConfig

_WINDOW_CHARACTERS = 8_192


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
        # An instruction's last token may merge with the text's first: two tokens of slack for that.
        room = self.max_tokens - tokenizer.overhead - 2 * bool(tokenizer.instruction)
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
        spans = [
            (i, start, end)
            for i, text in enumerate(documents)
            for start, end in [_stripped(text)]
            if start < end
        ]
        texts = [documents[i][start:end] for i, start, end in spans]
        tokens = self._tokenizer.tokenize(texts)
        divide = self._split
        while self._splitter and any(over := self._over_budget(texts, tokens)):
            spans = [
                (i, start + first, start + last)
                for (i, start, end), text, long in zip(spans, texts, over, strict=True)
                for first, last in (divide(text) if long else [(0, end - start)])
            ]
            texts = [documents[i][start:end] for i, start, end in spans]
            tokens = self._tokenizer.tokenize(texts)
            # The splitter takes a token to be a byte at least, which NFKC makes untrue ("½" is
            # three tokens): what is still over is halved.
            divide = _halves
        table = np.array(spans, dtype=np.int64).reshape(-1, 3)
        start, end = table[:, 1].astype(np.int32), table[:, 2].astype(np.int32)
        return Passages(table[:, 0], start, end, texts, tokens)

    def _over_budget(self, texts: Sequence[str], tokens: TokenizedTexts) -> list[bool]:
        over = (tokens.lengths > self.max_tokens) | tokens.truncated
        return [bool(o) and len(text) > 1 for o, text in zip(over, texts, strict=True)]

    def _split(self, text: str) -> list[tuple[int, int]]:
        assert self._splitter
        return [
            (first + start, first + start + len(chunk))
            for first, last in _windows(text, max(_WINDOW_CHARACTERS, 16 * self.max_tokens))
            for start, chunk in self._splitter.chunk_indices(text[first:last])
        ]


def _windows(text: str, size: int) -> Iterator[tuple[int, int]]:
    """The text in pieces of at most `size` characters, each ended at a line or word where it can.

    The splitter's time grows faster than the length of text without paragraphs: a megabyte of log
    in one line takes it minutes, in windows seconds.
    """
    start = 0
    while len(text) - start > size:
        stop = start + size
        least = start + size // 2
        cut = max(text.rfind("\n", least, stop), 0) or max(text.rfind(" ", least, stop), 0) or stop
        yield start, cut
        start = cut
    yield start, len(text)


def _stripped(text: str) -> tuple[int, int]:
    start = len(text) - len(text.lstrip())
    return start, max(len(text.rstrip()), start)


def _halves(text: str) -> list[tuple[int, int]]:
    """Two pieces, cut at the space nearest before the middle where there is one."""
    middle = len(text) // 2
    middle = max(text.rfind(" ", 1, middle + 1), 0) or middle
    (a, b), (c, d) = _stripped(text[:middle]), _stripped(text[middle:])
    return [piece for piece in ((a, b), (middle + c, middle + d)) if piece[0] < piece[1]]
