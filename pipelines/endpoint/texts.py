"""Tokenise the texts of a request as queries, as passages, or take token ids unchanged."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from actors.encoder import Encoder
from actors.tokens.tokenizer import TextTokenizer, TokenizedTexts, TokenSpan, encoder_input
from pipelines.config.sections import ChunkConfig
from pipelines.endpoint.config import Kind
from pipelines.passages.chunker import Chunker


class Text(NamedTuple):
    """One text to encode."""

    kind: Kind
    text: str
    title: str | None = None
    """The title of the passage's document."""
    ids: tuple[int, ...] | None = None
    """Token ids instead of a text. They include special tokens and are encoded unchanged."""

    @property
    def characters(self) -> int:
        """The length in characters, as an estimate of the work."""
        if self.ids is not None:
            return 4 * len(self.ids)
        return len(self.text) + len(self.title or "")


class TextReader:
    """A thread-safe tokeniser that treats texts like those of the index."""

    def __init__(self, encoder: Encoder, chunk: ChunkConfig, max_tokens: int | None) -> None:
        """`chunk`: says how titles precede passages. `max_tokens`: maximum length, if it is less
        than the model's.
        """
        self._encoder = encoder
        self._chunker = Chunker(chunk, encoder.passage_tokenizer)
        self._limit = max_tokens
        self._lock = threading.Lock()

    def tokenize(self, texts: Sequence[Text]) -> TokenizedTexts:
        """Return the token ids of each text, cut at the maximum length of its kind."""
        rows: list[np.ndarray] = [np.empty(0, np.int32)] * len(texts)
        truncated = [False] * len(texts)
        for kind in ("query", "passage"):
            places = [i for i, t in enumerate(texts) if t.kind == kind and t.ids is None]
            if not places:
                continue
            with self._lock:  # tokenize changes the truncation setting of the tokenizer
                found = self._of_kind(kind, [texts[i] for i in places])
            for place, row, cut in zip(places, found.rows(), found.truncated, strict=True):
                rows[place], truncated[place] = row, bool(cut)
        for place, text in enumerate(texts):
            if text.ids is not None:
                limit = self.max_tokens(text.kind)
                rows[place] = np.array(text.ids[:limit], dtype=np.int32)
                truncated[place] = len(text.ids) > limit
        return TokenizedTexts.from_rows(rows, truncated)

    def max_tokens(self, kind: Kind) -> int:
        """Return the maximum length of a kind, in tokens."""
        info = self._encoder.info
        own = info.query_max_length if kind == "query" else info.max_length
        return min(self._limit or own, own)

    def tokens(self, texts: Sequence[Text], special: bool) -> list[list[dict[str, Any]]]:
        """Return the tokens of each text without truncation, with or without special tokens."""
        return [
            [
                piece._asdict() | {"text": piece.token}
                for piece in self.pieces(text.kind, text.text)
                if special or not piece.special
            ]
            for text in texts
        ]

    def pieces(self, kind: Kind, text: str) -> list[TokenSpan]:
        """Return all tokens of a text, including special and instruction tokens. Nothing is cut."""
        return self._own_tokenizer(kind).pieces(text)

    def passage_pieces(self, text: str, title: str | None) -> list[TokenSpan]:
        """Return `pieces` of a passage with its title. Offsets refer to the text, not the title."""
        with self._lock:
            [head] = self._chunker.titles([title])
        whole = encoder_input(head.text, text)
        before = len(whole) - len(text)
        return [
            piece._replace(start=piece.start - before, stop=piece.stop - before)
            if piece.start is not None and piece.stop is not None and piece.start >= before
            else piece._replace(start=None, stop=None)
            for piece in self.pieces("passage", whole)
        ]

    def token(self, token_id: int) -> str:
        """Return the vocabulary entry of a token id."""
        return self._encoder.passage_tokenizer.token(token_id)

    @functools.cache  # noqa: B019  lives as long as its replica
    def _own_tokenizer(self, kind: Kind) -> TextTokenizer:
        """Return a copy of the tokenizer, so that `pieces` of a long text never delays encoding."""
        tokenizer = self._encoder.query_tokenizer if kind == "query" else None
        if not isinstance(tokenizer, TextTokenizer):  # in-context learning: without the examples
            tokenizer = self._encoder.passage_tokenizer
        with self._lock:
            return copy.deepcopy(tokenizer)

    def _of_kind(self, kind: Kind, texts: list[Text]) -> TokenizedTexts:
        if kind == "query":
            tokenizer = self._encoder.query_tokenizer
            words = [text.text for text in texts]
            if isinstance(tokenizer, TextTokenizer):
                return tokenizer.tokenize(words, self._limit)
            return tokenizer.tokenize(words)  # in-context learning: only the query is cut
        titles = self._chunker.titles([text.title for text in texts])
        inputs = [
            encoder_input(title.text, text.text) for title, text in zip(titles, texts, strict=True)
        ]
        found = self._encoder.passage_tokenizer.tokenize(inputs, self._limit)
        cut = np.array([title.is_cut for title in titles], dtype=bool)
        return TokenizedTexts(found.values, found.offsets, found.truncated | cut)
