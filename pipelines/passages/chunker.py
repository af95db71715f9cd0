"""Cuts documents into passages, which are spans of characters.

The token budget is exact: tokens are counted on the encoder's whole input for each passage.
`pipelines.passages.splitter` decides where to cut.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from actors.errors import ConfigError
from actors.tokens.tokenizer import TextTokenizer, TokenizedTexts, encoder_input
from pipelines.config.sections import ChunkConfig
from pipelines.passages.splitter import (
    Span,
    WindowCounter,
    before_space,
    halves,
    heading_sections,
    inside_word,
    packed_sections,
    split_text,
    stripped,
)

_TITLE_CHARACTERS_PER_TOKEN = 32


@dataclass(frozen=True)
class Passages:
    """The passages of several documents, in order."""

    document: np.ndarray
    """int64 [passages]: index of the passage's document."""
    start: np.ndarray
    """int32 [passages]: first character in the document."""
    end: np.ndarray
    """int32 [passages]: one past the last character."""
    texts: list[str]
    """document[start:end] of each passage."""
    tokens: TokenizedTexts
    """The encoder's input: instruction and title, if configured, and the text. `truncated` if title
    or text was cut."""


@dataclass(frozen=True)
class Title:
    """The part of a document's title that the encoder gets."""

    text: str | None
    is_cut: bool
    room: int
    """Tokens left for a passage's text."""


class Chunker:
    """Cuts and tokenises documents according to a configuration."""

    def __init__(self, config: ChunkConfig, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self.max_tokens = tokenizer.max_length
        if config.by != "none":
            self.max_tokens = config.max_tokens or tokenizer.max_length
        if self.max_tokens > tokenizer.max_length:
            raise ConfigError(
                f"chunk.max_tokens: expected at most {tokenizer.max_length} (model.max_length), "
                f"got {self.max_tokens}."
            )
        # Two tokens of slack: an instruction's last token may merge with the text's first.
        self._room = self.max_tokens - tokenizer.overhead - 2 * bool(tokenizer.prompt.before)
        if config.by != "none" and (self._room < 1 or config.overlap >= self._room):
            raise ConfigError(
                f"chunk: expected max_tokens above overlap ({config.overlap}) and the "
                f"{tokenizer.overhead} special and instruction tokens, got {self.max_tokens}."
            )

    def passages(
        self, documents: Sequence[str], titles: Sequence[str | None] | None = None
    ) -> Passages:
        """Return the passages of each document, in order, without whitespace at their ends.

        A document that contains only whitespace has no passage. `titles`: one for each document;
        used only with `chunk.title_prefix`.
        """
        heads = self.titles(titles or [None] * len(documents))
        is_cut = np.array([head.is_cut for head in heads], dtype=bool)
        dividers = iter(()) if self._config.by == "none" else self._dividers()
        done: list[tuple[int, int, int, bool, np.ndarray]] = []
        todo = _pieces((i, text, (0, len(text))) for i, text in enumerate(documents))
        while todo:
            texts = [
                encoder_input(heads[i].text, documents[i][start:end]) for i, start, end in todo
            ]
            tokens = self._tokenizer.tokenize(texts, self.max_tokens)
            divide = next(dividers, None)
            over = []
            for (i, start, end), cut, ids in zip(
                todo, tokens.truncated, tokens.rows(), strict=True
            ):
                if cut and divide and end - start > 1:
                    over.append((i, start, end))
                else:
                    done.append((i, start, end, bool(cut), ids))
            todo = _pieces(
                (i, documents[i], (start + first, start + last))
                for i, start, end in over
                if divide
                for first, last in divide(documents[i][start:end], heads[i])
            )
        done = list(_none_inside_another(done))
        document = np.array([row[0] for row in done], dtype=np.int64)
        tokens = TokenizedTexts.from_rows([row[4] for row in done], [row[3] for row in done])
        return Passages(
            document=document,
            start=np.array([row[1] for row in done], dtype=np.int32),
            end=np.array([row[2] for row in done], dtype=np.int32),
            texts=[documents[i][start:end] for i, start, end, *_ in done],
            tokens=replace(tokens, truncated=tokens.truncated | is_cut[document]),
        )

    def titles(self, titles: Sequence[str | None]) -> list[Title]:
        """Return the part of each title that precedes every passage of its document."""
        if not self._config.title_prefix:
            return [Title(None, False, self._room)] * len(titles)
        tokens = self._tokenizer.tokenize([encoder_input(t, "") for t in titles], self.max_tokens)
        own = (tokens.lengths - self._tokenizer.overhead).tolist()
        return [
            Title(title, False, self._room - count)
            if count <= self._room // 2
            else self._cut(title or "")
            for title, count in zip(titles, own, strict=True)
        ]

    def _dividers(self) -> Iterator[_Divide]:
        """Yield ways to divide pieces over the budget; each gets what is still too long."""
        yield self._estimated
        yield self._counted
        # The splitter assumes at least one byte per token. NFKC breaks this: "½" is three tokens.
        yield from itertools.repeat(lambda text, head: halves(text))

    def _estimated(self, text: str, head: Title) -> Iterator[Span]:
        counter = functools.partial(WindowCounter, self._tokenizer, self._config.overlap)
        for start, end, is_over in self._sections(text, head.room):
            if is_over:
                for first, last in split_text(
                    text[start:end], head.room, self._config.overlap, counter
                ):
                    yield start + first, start + last
            else:
                yield start, end

    def _counted(self, text: str, head: Title) -> Iterator[Span]:
        around = self._tokenizer.count(encoder_input(head.text, ""))

        def count(piece: str) -> int:
            return max(self._tokenizer.count(encoder_input(head.text, piece)) - around, 0)

        return split_text(text, head.room, self._config.overlap, lambda window: count)

    def _sections(self, text: str, room: int) -> Iterator[tuple[int, int, bool]]:
        """Yield runs of sections: start, end, and whether the run exceeds `room`."""
        markup = self._config.markup
        found = [(0, 0)] if markup == "plain" else heading_sections(text, markup)
        if len(found) == 1:
            yield 0, len(text), True
            return
        starts, levels = zip(*found, strict=True)
        ends = [*starts, len(text)]
        tokens = self._tokenizer.tokenize(
            [text[start:end] for start, end in itertools.pairwise(ends)], self.max_tokens
        )
        sizes = np.where(
            tokens.truncated, self.max_tokens, tokens.lengths - self._tokenizer.overhead
        ).tolist()
        for first, last in packed_sections(levels, sizes, room):
            yield ends[first], ends[last], sum(sizes[first:last]) > room

    def _cut(self, title: str) -> Title:
        """Cut a title to the words that take at most half of the budget."""
        half = max(self._room // 2, 0)
        spans = self._tokenizer.spans(title[: _TITLE_CHARACTERS_PER_TOKEN * half])[:half]
        end = spans[-1][1] if spans else 0
        if inside_word(title, end):
            end = before_space(title, 0, end) or end
        count = self._tokenizer.count(encoder_input(title[:end], "")) - self._tokenizer.overhead
        return Title(title[:end], True, max(self._room - count, 1))


_Divide = Callable[[str, Title], Iterable[Span]]


def _pieces(spans: Iterable[tuple[int, str, Span]]) -> list[tuple[int, int, int]]:
    """Return (document, start, end) of each span that contains more than whitespace."""
    found = ((i, *stripped(text, *span)) for i, text, span in spans)
    return [(i, start, end) for i, start, end in found if start < end]


_Passage = tuple[int, int, int, bool, np.ndarray]


def _none_inside_another(passages: list[_Passage]) -> Iterator[_Passage]:
    """Yield the passages in order, without those that lie inside an earlier one due to overlap."""
    document, furthest = -1, 0
    for passage in sorted(passages, key=lambda p: (p[0], p[1], -p[2])):
        i, _, end, *_ = passage
        if i != document or end > furthest:
            yield passage
            document, furthest = i, end
