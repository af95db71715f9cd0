"""Tokenise texts exactly as defined in tokenizer.json.

The `tokenizers` library runs the pipeline directly, because transformers 5 rebuilds some pipelines
(XLM-R) from the vocabulary and returns other ids. Imports no torch.
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

# A text is first cut at this many characters per token; few texts need a second, longer cut.
_CHARACTERS_PER_TOKEN = 16
_LEAST_CHARACTERS = 1_024
_LONGER = 8

# Limits for cutting inside a long word: the longest piece of sentencepiece, the longest word that
# WordPiece splits, and the length from which a run of one character ("-----") is cut, although its
# tokens may depend on its total length.
_LONGEST_TOKEN = 16
_LONGEST_WHOLE_WORD = 100
_ENDLESS_WORD = 1 << 20

# Encodings take a few hundred bytes per token, so texts are encoded in batches of this size.
_BATCH_CHARACTERS = 1 << 20


_NO_PROMPT = Prompt()


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of several texts as one flat buffer: the layout of an Arrow ListArray."""

    values: np.ndarray
    """Token ids of all texts, special tokens included, int32 [tokens]."""
    offsets: np.ndarray
    """Start of each text in `values` and the end of the last, int32 [texts + 1]."""
    truncated: np.ndarray
    """Whether the text was truncated, bool [texts]."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def from_rows(cls, rows: Sequence[np.ndarray], truncated: Sequence[bool]) -> TokenizedTexts:
        """Join one array of int32 ids per text."""
        offsets = np.zeros(len(rows) + 1, dtype=np.int32)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        values = np.concatenate([np.empty(0, dtype=np.int32), *rows])
        return cls(values, offsets, np.array(truncated, dtype=bool))

    def rows(self) -> list[np.ndarray]:
        """Return the ids of each text as views."""
        return np.split(self.values, self.offsets[1:-1]) if len(self) else []

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each text, int32 [texts]."""
        return np.diff(self.offsets)

    def to_arrow(self) -> pa.ListArray:
        """Return the ids as a list<int32> array without a copy."""
        return pa.ListArray.from_arrays(pa.array(self.offsets), pa.array(self.values))


class TokenSpan(NamedTuple):
    """One token of a text."""

    id: int
    token: str
    """Entry of the vocabulary."""
    special: bool
    start: int | None
    """First character in the text; None for a special token or a token of the prompt."""
    stop: int | None


def encoder_input(title: str | None, text: str) -> str:
    """Return the passage with its title and a newline before it, unless the title is blank."""
    return f"{title}\n{text}" if title and not title.isspace() else text


class TextTokenizer:
    """A model's tokenizer, which adds a prompt to each text, truncates and does not pad.

    It keeps one tokenizer in memory (400 MB for XLM-R) and changes its truncation as needed.
    Threads may share it only if they use the same limit.
    """

    def __init__(self, folder: Path, max_length: int, prompt: Prompt = _NO_PROMPT) -> None:
        """Load `folder`/tokenizer.json; `max_length` counts special tokens and the prompt."""
        self.max_length = max_length
        self.prompt = prompt
        self._tokenizer = load_tokenizer(folder)
        self._limit: int | None = max_length
        self._tokenizer.enable_truncation(max_length)
        self.overhead = len(self._tokenizer.encode(prompt.around("")).ids)
        """Number of special tokens and tokens of the prompt."""

    def tokenize(self, texts: Sequence[str], limit: int | None = None) -> TokenizedTexts:
        """Return the token ids of each text, special tokens included, truncated to `limit`.

        `limit`: at most `max_length`, which is the default. Only as much of a text is tokenised as
        fills the limit, because the tokens of its first words do not depend on the rest. A text
        that begins with a word of a million characters may get other tokens.
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
        """Return the vocabulary's entry of an id; "" for an unknown id."""
        return self._tokenizer.id_to_token(token_id) or ""

    def count(self, text: str) -> int:
        """Return the number of tokens of the text with its prompt, without truncation."""
        self._cut_at(None)
        return len(self._tokenizer.encode(self.prompt.around(text)).ids)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return the characters [start, end) of each token, without prompt or truncation."""
        self._cut_at(None)
        return self._tokenizer.encode(text, add_special_tokens=False).offsets

    def pieces(self, text: str) -> list[TokenSpan]:
        """Return all tokens of the text, the prompt and special tokens, without truncation."""
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
        """Encode a text whose words within `size` characters (`tried` long) have too few tokens."""
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
        """Encode a text cut inside a word; return None if the rest could change the kept tokens.

        The tokens of the whole text begin with those of a prefix that ends within one token before
        the cut. If the tokens of all such prefixes agree, they do not depend on the rest.
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
        """Return the text with its prompt, or the start of it if `head` is only a prefix."""
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
    """Return the whole words within the first `size` characters; "" if the first is longer."""
    if len(text) <= size:
        return text
    stop = max(text.rfind(" ", 0, size), text.rfind("\n", 0, size), 0)
    return text[:stop].rstrip(" \n")


def _batches(texts: Sequence[str], most: int) -> Iterator[Sequence[str]]:
    """Yield batches of about _BATCH_CHARACTERS, counting at most `most` characters per text."""
    start = size = 0
    for i, text in enumerate(texts):
        size += min(len(text), most)
        if size >= _BATCH_CHARACTERS:
            yield texts[start : i + 1]
            start, size = i + 1, 0
    if start < len(texts):
        yield texts[start:]
