"""Tokenise pairs of a query and a passage, each distinct text once.

Token ids are joined without decoding, as FlagEmbedding does with transformers 4
(inference/reranker: `tokenizer.prepare_for_model(..., truncation="only_second")`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from actors.config import RerankerConfig, RerankerKind
from actors.errors import ModelError
from actors.models.reranker_files import RerankerFiles
from actors.tokens.pair_tokens import PairShape, PairTokens
from actors.tokens.tokenizer_files import load_tokenizer, special_id, token_records

Pair = tuple[str, str]
"""A query and a passage."""

LLM_PROMPT = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the "
    "query by providing a prediction of either 'Yes' or 'No'."
)
LIGHTWEIGHT_PROMPT = "Predict whether passage B contains an answer to query A."


class PairTokenizer(Protocol):
    """Interface of the tokenizers of pairs."""

    @property
    def shape(self) -> PairShape:
        """Properties that all pairs share."""

    def tokenize(self, pairs: Sequence[Pair], *, keep_end: bool = False) -> PairTokens:
        """Tokenise pairs in order; `keep_end`: truncate a long text at its beginning."""


def load_pair_tokenizer(files: RerankerFiles, config: RerankerConfig) -> PairTokenizer:
    """Return the tokenizer for this kind of reranker.

    Raises:
        ModelError: the lengths leave no room for a passage, or there is no tokenizer.
    """
    if files.kind == "encoder":
        return EncoderPairs(files.folder, config)
    return PromptedPairs(files.folder, config, prompt_of(files.kind, config))


def prompt_of(kind: RerankerKind, config: RerankerConfig) -> str:
    """Return the prompt after a pair; "" for cross-encoders."""
    if kind == "encoder":
        return ""
    own = LIGHTWEIGHT_PROMPT if kind == "lightweight" else LLM_PROMPT
    return own if config.prompt is None else config.prompt


class EncoderPairs:
    """Tokenises by the tokenizer's template for pairs, as in `<s> query </s></s> passage </s>`."""

    def __init__(self, folder: Path, config: RerankerConfig) -> None:
        """Raise ModelError if there is no tokenizer or the lengths leave no room for a passage."""
        self._tokenizer = load_tokenizer(folder)
        self._template = _Template.of(self._tokenizer, folder)
        self.shape = PairShape(self._template.types, len(self._template.parts[2]))
        self._query_limit, self._limit = _limits(config)
        room = self._limit - self._template.special
        if room < _LEAST_ROOM:
            raise ModelError(
                f"reranker.max_length: expected {self._template.special + _LEAST_ROOM} or more "
                f"({self._template.special} of them special tokens), got {self._limit}."
            )
        if self._query_limit >= room:
            raise ModelError(
                f"reranker.query_max_length: expected less than {room} (max_length minus "
                f"{self._template.special} special tokens), got {self._query_limit}.",
                "Raise max_length, or lower query_max_length.",
            )

    def tokenize(self, pairs: Sequence[Pair], *, keep_end: bool = False) -> PairTokens:
        """Tokenise pairs in order, as `PairTokenizer.tokenize`."""
        queries = _ids(self._tokenizer, [query for query, _ in pairs])
        passages = _ids(self._tokenizer, [passage for _, passage in pairs])
        before, between, after = self._template.parts
        rows: list[_Row] = []
        for query, passage in pairs:
            first = _kept(queries[query], self._query_limit, keep_end)
            room = self._limit - self._template.special - len(first)
            second = _kept(passages[passage], room, keep_end)
            cut = len(first) < len(queries[query]) or len(second) < len(passages[passage])
            rows.append(([*before, *first, *between], [*second, *after], cut))
        return _tokens(rows, self.shape)


class PromptedPairs:
    """Tokenises as `<bos> A: query \\n B: passage \\n prompt`, for LLM rerankers."""

    def __init__(self, folder: Path, config: RerankerConfig, prompt: str) -> None:
        """Raise ModelError if there is no tokenizer."""
        self._tokenizer = load_tokenizer(folder)
        self._query_limit, self._limit = _limits(config)
        self._separator = _ids(self._tokenizer, ["\n"])["\n"]
        self._tail = [*self._separator, *_ids(self._tokenizer, [prompt])[prompt]]
        self.shape = PairShape((0, 0), len(self._tail))
        record = {key: token for found in token_records(folder) for key, token in found.items()}
        keys = ("bos_token", "pad_token")
        bos, pad = (special_id(self._tokenizer, record, key) for key in keys)
        self._bos = [bos] if bos is not None and bos != pad else []

    def first_id(self, text: str) -> int:
        """Return the first token id of a text, such as "Yes"."""
        return _ids(self._tokenizer, [text])[text][0]

    def tokenize(self, pairs: Sequence[Pair], *, keep_end: bool = False) -> PairTokens:
        """Tokenise pairs in order, as `PairTokenizer.tokenize`."""
        queries = _ids(self._tokenizer, [query for query, _ in pairs], "A: ")
        passages = _ids(self._tokenizer, [passage for _, passage in pairs], "B: ")
        most = self._limit + len(self._tail)  # FlagEmbedding: max_length + |separator| + |prompt|
        rows: list[_Row] = []
        for query, passage in pairs:
            first, second = queries[query], passages[passage]
            head = [*self._bos, *_kept(first, self._query_limit, keep_end), *self._separator]
            kept = _kept(second, max(min(self._limit, most - len(head)), 0), keep_end)
            cut = len(first) > self._query_limit or len(kept) < len(second)
            rows.append((head, [*kept, *self._tail], cut))
        return _tokens(rows, self.shape)


def _ids(tokenizer: Tokenizer, texts: Sequence[str], prefix: str = "") -> dict[str, list[int]]:
    """Return {text: token ids of prefix + text}, without special tokens."""
    different = list(dict.fromkeys(texts))
    found = tokenizer.encode_batch_fast(
        [prefix + text for text in different], add_special_tokens=False
    )
    return {text: encoding.ids for text, encoding in zip(different, found, strict=True)}


_LEAST_ROOM = 2  # a token of the query and one of the passage


@dataclass(frozen=True)
class _Template:
    """The special tokens that a tokenizer puts around two texts."""

    parts: tuple[list[int], list[int], list[int]]
    """Token ids before the first text, between the texts and after the second."""
    types: tuple[int, int]
    """Token type before the second text, and from the second text on."""

    @classmethod
    def of(cls, tokenizer: Tokenizer, folder: Path) -> _Template:
        own = tokenizer.encode("a", add_special_tokens=False).ids
        both = tokenizer.encode("a", "a")
        places = [i for i in range(len(both.ids)) if both.ids[i : i + len(own)] == own]
        if len(places) < 2 or places[-1] - places[0] < len(own):
            raise ModelError(f"{folder}: expected a tokenizer that joins two texts, found none.")
        first, second = places[0], places[-1]
        parts = (
            both.ids[:first],
            both.ids[first + len(own) : second],
            both.ids[second + len(own) :],
        )
        return cls(parts, (both.type_ids[first], both.type_ids[second]))

    @property
    def special(self) -> int:
        return sum(map(len, self.parts))


_Row = tuple[list[int], list[int], bool]
"""Token ids before the passage, ids from the passage on, and whether a text was truncated."""


def _tokens(rows: Sequence[_Row], shape: PairShape) -> PairTokens:
    parts = chain.from_iterable((head, rest) for head, rest, _ in rows)
    lengths = [len(head) + len(rest) for head, rest, _ in rows]
    return PairTokens.of(
        values=np.array(list(chain.from_iterable(parts)), dtype=np.int32),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        passage_starts=np.array([len(head) for head, _, _ in rows], dtype=np.int64),
        truncated=np.array([cut for _, _, cut in rows], dtype=bool),
        shape=shape,
    )


def _kept(ids: list[int], most: int, keep_end: bool) -> list[int]:
    return ids[max(len(ids) - most, 0) :] if keep_end else ids[:most]


def _limits(config: RerankerConfig) -> tuple[int, int]:
    assert config.query_max_length is not None  # __post_init__ has set it
    return config.query_max_length, config.max_length
