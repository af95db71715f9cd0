"""Pairs of a query and a passage as token ids, each text tokenised once.

Ids are put together, never decoded and tokenised again, as FlagEmbedding does up to transformers 4
(inference/reranker: `tokenizer.prepare_for_model(..., truncation="only_second")`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from actors.errors import ModelError
from actors.json_files import read_json
from actors.rerank.config import RerankerConfig
from actors.tokenizer_files import load_tokenizer

Pair = tuple[str, str]
"""A query and a passage."""

LLM_PROMPT = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the "
    "query by providing a prediction of either 'Yes' or 'No'."
)
LIGHTWEIGHT_PROMPT = "Predict whether passage B contains an answer to query A."


@dataclass(frozen=True)
class PairTokens:
    """Token ids of N pairs; pair i is values[offsets[i]:offsets[i + 1]]."""

    values: np.ndarray
    """int32 [T]."""
    offsets: np.ndarray
    """int64 [N + 1]."""
    types: np.ndarray
    """int32 [T]: 1 for tokens of the second text, where the model tells them apart; else 0."""
    passage_starts: np.ndarray
    """int64 [N]: how many tokens of a pair come before those of its passage."""
    tail: int
    """How many come after them in every pair."""
    truncated: np.ndarray
    """bool [N]."""

    def part(self, start: int, stop: int) -> PairTokens:
        """Pairs `start` to `stop`."""
        first, last = self.offsets[start], self.offsets[stop]
        return PairTokens(
            values=self.values[first:last],
            offsets=self.offsets[start : stop + 1] - first,
            types=self.types[first:last],
            passage_starts=self.passage_starts[start:stop],
            tail=self.tail,
            truncated=self.truncated[start:stop],
        )

    @staticmethod
    def joined(parts: Sequence[PairTokens]) -> PairTokens:
        """All pairs of some parts, at least one, that one tokenizer made."""
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        return PairTokens(
            values=np.concatenate([part.values for part in parts]),
            offsets=np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
            types=np.concatenate([part.types for part in parts]),
            passage_starts=np.concatenate([part.passage_starts for part in parts]),
            tail=parts[0].tail,
            truncated=np.concatenate([part.truncated for part in parts]),
        )

    def rows(self) -> list[list[int]]:
        """The ids of each pair."""
        return [
            self.values[start:stop].tolist()
            for start, stop in zip(self.offsets[:-1], self.offsets[1:], strict=True)
        ]


class PairTokenizer(Protocol):
    """What turns pairs into token ids."""

    def tokenize(self, pairs: Sequence[Pair]) -> PairTokens:
        """In the order given."""


class EncoderPairs:
    """`<s> query </s></s> passage </s>`, or whatever the tokenizer's template for pairs says."""

    def __init__(self, folder: Path, config: RerankerConfig) -> None:
        """Raises:
        ModelError: no tokenizer there, or lengths that leave no room for a passage.
        """
        self._texts = _Texts(folder)
        self._template = _Template.of(self._texts.tokenizer, folder)
        self._query_limit, self._limit = _limits(config)
        room = self._limit - self._template.special
        if self._query_limit >= room:
            raise ModelError(
                f"reranker.query_max_length: expected less than {room} (max_length less "
                f"{self._template.special} special tokens), got {self._query_limit}.",
                "Raise max_length, or lower query_max_length.",
            )

    def tokenize(self, pairs: Sequence[Pair]) -> PairTokens:
        """As `PairTokenizer`."""
        queries = self._texts.ids([query for query, _ in pairs])
        passages = self._texts.ids([passage for _, passage in pairs])
        rows = _Rows()
        for query, passage in pairs:
            first = queries[query][: self._query_limit]
            room = self._limit - self._template.special - len(first)
            second = passages[passage][:room]
            cut = len(first) < len(queries[query]) or len(second) < len(passages[passage])
            before, between, after = self._template.parts
            rows.add([*before, *first, *between], second, after, cut)
        first_type, second_type = self._template.types
        return rows.tokens(first_type, second_type)


class PromptedPairs:
    """`<bos> A: query \\n B: passage \\n prompt`, for models that go on writing."""

    def __init__(self, folder: Path, config: RerankerConfig, prompt: str) -> None:
        """Raises:
        ModelError: no tokenizer there.
        """
        self._texts = _Texts(folder)
        self._query_limit, self._limit = _limits(config)
        separator = self._texts.ids(["\n"])["\n"]
        own = prompt if config.prompt is None else config.prompt
        self._separator, self._tail = separator, [*separator, *self._texts.ids([own])[own]]
        bos, pad = _token_ids(self._texts.tokenizer, folder, ("bos_token", "pad_token"))
        self._bos = [bos] if bos is not None and bos != pad else []

    def first_id(self, text: str) -> int:
        """The first token of a text, such as "Yes"."""
        return self._texts.ids([text])[text][0]

    def tokenize(self, pairs: Sequence[Pair]) -> PairTokens:
        """As `PairTokenizer`."""
        queries = self._texts.ids([query for query, _ in pairs], "A: ")
        passages = self._texts.ids([passage for _, passage in pairs], "B: ")
        most = self._limit + len(self._tail)  # upstream: max_length + |separator| + |prompt|
        rows = _Rows()
        for query, passage in pairs:
            first, second = queries[query], passages[passage]
            head = [*self._bos, *first[: self._query_limit], *self._separator]
            kept = second[: max(min(self._limit, most - len(head)), 0)]
            cut = len(first) > self._query_limit or len(kept) < len(second)
            rows.add(head, kept, self._tail, cut)
        return rows.tokens(0, 0)


class _Texts:
    """Token ids of texts, without special tokens; each different text once."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = load_tokenizer(folder)
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def ids(self, texts: Sequence[str], prefix: str = "") -> dict[str, list[int]]:
        """By text; `prefix` is before each."""
        different = list(dict.fromkeys(texts))
        found = self.tokenizer.encode_batch_fast(
            [prefix + text for text in different], add_special_tokens=False
        )
        return {text: encoding.ids for text, encoding in zip(different, found, strict=True)}


@dataclass(frozen=True)
class _Template:
    """What a tokenizer puts around two texts."""

    parts: tuple[list[int], list[int], list[int]]
    """Before the first, between them, after the second."""
    types: tuple[int, int]
    """Token type of everything up to the second text, and from there on."""

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


class _Rows:
    """Pairs as they are put together."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._ends = [0]
        self._starts: list[int] = []
        self._truncated: list[bool] = []
        self._tail = 0

    def add(self, head: list[int], passage: list[int], tail: list[int], cut: bool) -> None:
        self._ids += [*head, *passage, *tail]
        self._ends.append(len(self._ids))
        self._starts.append(len(head))
        self._truncated.append(cut)
        self._tail = len(tail)

    def tokens(self, first_type: int, second_type: int) -> PairTokens:
        offsets = np.array(self._ends, dtype=np.int64)
        starts = np.array(self._starts, dtype=np.int64)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))
        is_second = within >= np.repeat(starts, np.diff(offsets))
        return PairTokens(
            values=np.array(self._ids, dtype=np.int32),
            offsets=offsets,
            types=np.where(is_second, second_type, first_type).astype(np.int32),
            passage_starts=starts,
            tail=self._tail,
            truncated=np.array(self._truncated, dtype=bool),
        )


def _limits(config: RerankerConfig) -> tuple[int, int]:
    assert config.query_max_length is not None  # __post_init__ has set it
    return config.query_max_length, config.max_length


def _token_ids(tokenizer: Tokenizer, folder: Path, names: Sequence[str]) -> list[int | None]:
    """Ids of named special tokens, as tokenizer_config.json or special_tokens_map.json has them."""
    record: dict[str, object] = {}
    for filename in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / filename
        record |= read_json(path) if path.exists() else {}
    found: list[int | None] = []
    for name in names:
        token = record.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        found.append(tokenizer.token_to_id(text) if isinstance(text, str) else None)
    return found
