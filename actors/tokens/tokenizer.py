"""Text to token ids, exactly as tokenizer.json says.

The pipeline in tokenizer.json is run by the `tokenizers` library itself: transformers 5 rebuilds
some pipelines (XLM-R) from the vocabulary and gives other ids. Knows no torch and no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from tokenizers import Encoding

from actors.models.prompts import Prompt
from actors.tokens.tokenizer_files import load_tokenizer

TOKENS_COLUMN = "input_ids"
"""Name of the list<int32> column of a token block."""

# A text is first cut at so many characters a token: few texts need a second, longer cut.
_CHARACTERS_PER_TOKEN = 16
_LEAST_CHARACTERS = 1_024
_LONGER = 8

# Where a word is so long that it has to be cut: sentencepiece's longest piece, the longest word
# that WordPiece does not give up on, and the length from which a run of one character ("-----"),
# whose tokens may depend on its length to the end, is cut all the same.
_LONGEST_TOKEN = 16
_LONGEST_WHOLE_WORD = 100
_ENDLESS_WORD = 1 << 20

# Encodings weigh some hundred bytes a token: they are made and let go in batches of this size.
_BATCH_CHARACTERS = 1 << 20


_NO_PROMPT = Prompt()


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of several texts as one flat buffer: the layout of an Arrow ListArray."""

    values: np.ndarray
    """int32 [total tokens], special tokens included."""
    offsets: np.ndarray
    """int32 [texts + 1]."""
    truncated: np.ndarray
    """bool [texts]: the text had more tokens than fit."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def from_rows(cls, rows: Sequence[np.ndarray], truncated: Sequence[bool]) -> TokenizedTexts:
        """One text a row of int32 ids."""
        offsets = np.zeros(len(rows) + 1, dtype=np.int32)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        values = np.concatenate([np.empty(0, dtype=np.int32), *rows])
        return cls(values, offsets, np.array(truncated, dtype=bool))

    def rows(self) -> list[np.ndarray]:
        """The ids of each text, as views."""
        return np.split(self.values, self.offsets[1:-1]) if len(self) else []

    @property
    def lengths(self) -> np.ndarray:
        """int32 [texts]: tokens of each text."""
        return np.diff(self.offsets)

    def to_arrow(self) -> pa.ListArray:
        """The same two buffers as list<int32>, without a copy."""
        return pa.ListArray.from_arrays(pa.array(self.offsets), pa.array(self.values))


class TokenSpan(NamedTuple):
    """One token of a text."""

    id: int
    token: str
    """The vocabulary's entry."""
    special: bool
    start: int | None
    """First character in the text; None where it is not the text's: special, or the prompt's."""
    stop: int | None


def encoder_input(title: str | None, text: str) -> str:
    """What is encoded of a passage: its title and a newline before it, nothing for a blank title.

    An instruction comes around this; `TextTokenizer` adds it.
    """
    return f"{title}\n{text}" if title and not title.isspace() else text


class TextTokenizer:
    """A model's tokenizer with its padding off, its truncation ours, a prompt around each text.

    One tokenizer in memory (400 MB for XLM-R's vocabulary), whose truncation is switched as
    needed: threads may share it only while they ask for the same limit.
    """

    def __init__(self, folder: Path, max_length: int, prompt: Prompt = _NO_PROMPT) -> None:
        """Load `folder`/tokenizer.json; `max_length` counts special tokens and the prompt."""
        self.max_length = max_length
        self.prompt = prompt
        self._tokenizer = load_tokenizer(folder)
        self._limit: int | None = max_length
        self._tokenizer.enable_truncation(max_length)
        self.overhead = len(self._tokenizer.encode(prompt.around("")).ids)
        """Tokens that are not the text's own: special ones and the prompt's."""

    def tokenize(self, texts: Sequence[str], limit: int | None = None) -> TokenizedTexts:
        """Token ids of each text, special tokens on, cut at `limit` (`max_length` at most).

        Takes time for what is kept, not for what is cut off: a text's first words have the same
        tokens whatever follows them, so that only as much is tokenised as fills the limit. (But a
        text that begins with one word of a million characters may have others.)
        """
        limit = min(limit or self.max_length, self.max_length)
        rows: list[np.ndarray] = []
        truncated: list[bool] = []
        for batch in _batches(texts, _CHARACTERS_PER_TOKEN * limit):
            encodings = self._encode(batch, limit)
            rows += [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
            truncated += [bool(encoding.overflowing) for encoding in encodings]
        return TokenizedTexts.from_rows(rows, truncated)

    def token(self, token_id: int) -> str:
        """The vocabulary's entry; "" for an id it has not."""
        return self._tokenizer.id_to_token(token_id) or ""

    def count(self, text: str) -> int:
        """How many tokens `tokenize` would give without a limit."""
        self._cut_at(None)
        return len(self._tokenizer.encode(self.prompt.around(text)).ids)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The characters [start, end) of each token of the text alone: no prompt, no cut."""
        self._cut_at(None)
        return self._tokenizer.encode(text, add_special_tokens=False).offsets

    def pieces(self, text: str) -> list[TokenSpan]:
        """The tokens of a text and of what comes around it, uncut."""
        self._cut_at(None)
        found = self._tokenizer.encode(self.prompt.around(text))
        before, length = len(self.prompt.before), len(text)
        pieces = []
        for i, token, special, (start, stop) in zip(
            found.ids, found.tokens, found.special_tokens_mask, found.offsets, strict=True
        ):
            own = not special and before <= start and stop <= before + length
            span = (start - before, stop - before) if own else (None, None)
            pieces.append(TokenSpan(i, token, bool(special), *span))
        return pieces

    def _encode(self, texts: Sequence[str], limit: int) -> list[Encoding]:
        self._cut_at(limit)
        size = max(_CHARACTERS_PER_TOKEN * limit, _LEAST_CHARACTERS)
        heads = [_head(text, size) for text in texts]
        inputs = [self._input(text, head) for text, head in zip(texts, heads, strict=True)]
        found = self._tokenizer.encode_batch_fast(inputs)
        for i, text in enumerate(texts):
            if len(heads[i]) < len(text) and not found[i].overflowing:
                found[i] = self._encode_more(text, len(heads[i]), size)
        return found

    def _encode_more(self, text: str, tried: int, size: int) -> Encoding:
        """A text whose first `tried` characters, all words within `size`, have too few tokens."""
        while True:
            if tried < size // 2 and (found := self._encode_in_word(text, size)):
                return found
            size *= _LONGER
            head = _head(text, size)
            found = self._tokenizer.encode(self._input(text, head))
            if found.overflowing or len(head) == len(text):
                return found
            tried = len(head)

    def _encode_in_word(self, text: str, size: int) -> Encoding | None:
        """A text cut inside a word, or none where what follows could change the tokens kept.

        The best tokens of a longer text begin with those of one of its heads that end less than
        a token before the cut: where these agree, the tokens do not depend on what follows.
        """
        found = self._tokenizer.encode(self._input(text, text[:size]))
        if not found.overflowing:
            return None
        if size < _ENDLESS_WORD:
            for less in (*range(1, _LONGEST_TOKEN + 1), _LONGEST_WHOLE_WORD):
                other = self._tokenizer.encode(self._input(text, text[: size - less]))
                if not other.overflowing or other.ids != found.ids:
                    return None
        return found

    def _input(self, text: str, head: str) -> str:
        """The encoder's input, as far as a head of the text decides it."""
        return self.prompt.around(text) if len(head) == len(text) else self.prompt.before + head

    def _cut_at(self, limit: int | None) -> None:
        if limit == self._limit:
            return
        if limit is None:
            self._tokenizer.no_truncation()
        else:
            self._tokenizer.enable_truncation(limit)
        self._limit = limit


def _head(text: str, size: int) -> str:
    """The words that end within the first `size` characters: none where the first is longer."""
    if len(text) <= size:
        return text
    stop = max(text.rfind(" ", 0, size), text.rfind("\n", 0, size), 0)
    return text[:stop].rstrip(" \n")


def _batches(texts: Sequence[str], most: int) -> Iterator[Sequence[str]]:
    """Runs of texts of which no more than `most` characters each are looked at."""
    start = size = 0
    for i, text in enumerate(texts):
        size += min(len(text), most)
        if size >= _BATCH_CHARACTERS:
            yield texts[start : i + 1]
            start, size = i + 1, 0
    if start < len(texts):
        yield texts[start:]
