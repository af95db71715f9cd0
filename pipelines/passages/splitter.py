"""Splits a long text at headings, then at paragraphs, sentences, words and characters.

This module finds headings; semantic-text-splitter splits the text below them. Token counts are
estimates, so the caller checks every piece. Pieces are character spans [start, end).
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import regex
from semantic_text_splitter import TextSplitter

from actors.tokens.tokenizer import TextTokenizer

Span = tuple[int, int]
CountTokens = Callable[[str], int]

_WINDOW_CHARACTERS = 8_192

_LOWEST = 6  # the lowest level of a heading
_FENCE = r"^ {0,3}(?P<fence>`{3,}(?=[^`\n]*$)|~{3,})(?P<info>[^\n]*)"
_ATX = r"^ {0,3}(?P<marks>#{1,6})[ \t][^\n]*"
_UNDERLINED = r"^ {0,3}(?=\S)[^\n]+\n {0,3}(?P<line>=+|-+)[ \t\r]*$"
_HEADINGS = {
    "auto": regex.compile(f"{_FENCE}|{_ATX}", regex.M),
    "markdown": regex.compile(f"{_FENCE}|{_ATX}|{_UNDERLINED}", regex.M),
}

# In scripts with spaces, a word extends to the next space. The splitter itself also cuts at every
# hyphen, apostrophe and asterisk, and before the full stop after a word.
_NO_SPACES = (
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
    r"\u3000-\u303f\uff00-\uffef]"
)
_LETTER = rf"[[\p{{L}}\p{{M}}\p{{N}}\u200c\u200d]--{_NO_SPACES}]"
_IN_WORD = rf"[[\p{{L}}\p{{M}}\p{{N}}\u200c\u200d\p{{P}}\p{{Sm}}\p{{Sc}}\p{{Sk}}]--{_NO_SPACES}]"
_MAY_BE_CUT = rf"[,;!?)\]}}…”»](?:{_LETTER}|[\p{{Ps}}\p{{Pi}}\"'])"
_WORD_CUT = regex.compile(rf"(?!{_MAY_BE_CUT}){_IN_WORD}{{2}}", regex.V1)
_SPACE = regex.compile(r"\s+")
_CLUSTER = regex.compile(r"\X")


def heading_sections(text: str, markup: Literal["auto", "markdown"]) -> list[tuple[int, int]]:
    """Return the start of each section and the level (1-6) of its heading; the first starts at 0.

    A heading without text below it belongs to the next section. Fenced code contains no headings.
    """
    found = [(0, _LOWEST)]
    fence = ""
    body = 0  # where the text below the last heading begins
    for match in _HEADINGS[markup].finditer(text):
        if mark := match["fence"]:
            if not fence:
                fence = mark
            elif mark.startswith(fence) and not match["info"].strip():
                fence = ""
            continue
        if fence:
            continue
        level = len(match["marks"]) if match["marks"] else 2 - (match["line"][0] == "=")
        if _has_words(text, body, match.start()):
            found.append((match.start(), level))
        else:
            found[-1] = (found[-1][0], min(found[-1][1], level))
        body = match.end()
    return found


def packed_sections(levels: Sequence[int], sizes: Sequence[int], capacity: int) -> Iterator[Span]:
    """Yield runs [first, last) of sections that fit `capacity` together, cut at the highest level.

    A section that exceeds the capacity alone is a run of its own.
    """
    ends = [0, *itertools.accumulate(sizes)]

    def runs(first: int, last: int) -> Iterator[Span]:
        if last - first == 1 or ends[last] - ends[first] <= capacity:
            yield first, last
            return
        highest = min(levels[first + 1 : last])
        start = stop = first
        for i in (*(i for i in range(first + 1, last) if levels[i] == highest), last):
            if start < stop and ends[i] - ends[start] > capacity:
                yield from runs(start, stop)
                start = stop
            stop = i
        yield from runs(start, stop)

    return runs(0, len(levels))


class WindowCounter:
    """Counts the tokens of a piece by looking them up in the tokenised window.

    Tokenising each candidate would be slow. The count may be wrong if a piece begins or ends inside
    a word, because the rest of the word may then be tokenised differently.
    """

    def __init__(self, tokenizer: TextTokenizer, overlap: int, window: str) -> None:
        spans = tokenizer.spans(window)
        self._tokenizer, self._overlap, self._window = tokenizer, overlap, window
        self._starts = [start for start, _ in spans]
        self._ends = [end for _, end in spans]
        self._last = 0

    def __call__(self, piece: str) -> int:
        """Count the tokens at some occurrence of `piece`; the splitter mostly moves forward."""
        start = self._window.find(piece, self._last)
        if start < 0:
            start = max(self._window.find(piece), 0)
        self._last = start
        first = bisect.bisect_right(self._ends, start)
        count = bisect.bisect_left(self._starts, start + len(piece)) - first
        if count <= self._overlap:  # the caller does not check an overlap
            return len(self._tokenizer.spans(piece))
        # XLM-R may add a token for the start of a word, even if the piece begins inside a word.
        return count + (start > 0 and not self._window[start - 1].isspace())


def split_text(
    text: str, capacity: int, overlap: int, counter_of: Callable[[str], CountTokens]
) -> Iterator[Span]:
    """Yield pieces of about `capacity` tokens, counted by `counter_of(window)`, in order.

    Pieces overlap by at most `overlap` tokens. A word is cut only if it exceeds the capacity. The
    splitter's time grows faster than linearly with text without paragraphs. So it gets one window
    at a time, and the last piece of a window is split again with the next window.
    """
    overlap = min(overlap, capacity - 1)
    least = max(_WINDOW_CHARACTERS, 16 * capacity)
    start, size = 0, least
    while start < len(text):
        window = text[start : start + size]
        is_last = start + size >= len(text)
        splitter = TextSplitter.from_callback(counter_of(window), capacity, overlap=overlap)
        chunks = [
            (start + at, start + at + len(chunk)) for at, chunk in splitter.chunk_indices(window)
        ]
        if len(chunks) < 2 and not is_last:
            size *= 2
            continue
        start, size = len(text), least
        end = 0
        for i, (at, last) in enumerate(chunks):
            first = _after_word(text, at, end) if at < end and inside_word(text, at) else at
            if i == len(chunks) - 1 and not is_last:
                start = first
                break
            if inside_word(text, last):
                if space := before_space(text, first, last):
                    yield first, space
                    start = space
                    break
                if at < end:  # the overlap leaves no room for the word
                    start = end
                    break
            yield first, last
            end = last


def halves(text: str) -> list[Span]:
    """Return two pieces, cut at the space nearest to the middle or, without one, at a character."""
    middle = len(text) // 2
    cuts = [m.start() for m in _SPACE.finditer(text, 1)]
    cuts = cuts or [m.start() for m in _CLUSTER.finditer(text)][1:] or [middle]
    cut = min(cuts, key=lambda at: abs(at - middle))
    return [(0, cut), (cut, len(text))]


def stripped(text: str, start: int, end: int) -> Span:
    """Return the span without whitespace at its ends; empty if it is all whitespace."""
    piece = text[start:end]
    first = start + len(piece) - len(piece.lstrip())
    return first, max(start + len(piece.rstrip()), first)


def inside_word(text: str, at: int) -> bool:
    """Whether a cut at `at` would split a word of a script that puts spaces between words."""
    return bool(at and _WORD_CUT.match(text, at - 1))


def before_space(text: str, start: int, end: int) -> int:
    """Return the start of the last whitespace between words in [start, end), 0 if there is none."""
    words = text[start:end].rsplit(None, 1)
    return start + len(words[0]) if len(words) == 2 else 0


def _has_words(text: str, start: int, end: int) -> bool:
    return not _SPACE.fullmatch(text, start, end) if start < end else False


def _after_word(text: str, start: int, end: int) -> int:
    """Return the end of the word around `start`, or `start` if `end` lies in the same word."""
    if space := _SPACE.search(text, start, end):
        return int(space.end())
    return start if inside_word(text, end) else end
