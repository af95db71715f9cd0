"""Answers for a terminal: rank, scores, title, and the part of a passage that fits the query."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from pipelines.search.answers import Hit

_EXCERPT = 320
_ELLIPSIS = "…"
_WORDS = 64  # of a query that are looked for in a text: each is a pass over it


def answers_text(query: str, hits: Sequence[Hit], *, whole: bool) -> Group:
    """What was found for one query; whole passages, or an excerpt of each."""
    lines: list[Text | Padding] = [Text(printable(query), style="bold")]
    if not hits:
        lines.append(Padding(Text("nothing found", style="dim"), (0, 0, 0, 4)))
    for hit in hits:
        lines.append(_head(hit))
        text = printable(hit.passage.get("text") or "")
        if text:
            shown = Text(text if whole else excerpt(text, query, _EXCERPT))
            for word in _words(query):
                shown.highlight_regex(rf"(?i)\b{re.escape(word)}\b", "bold")
            lines.append(Padding(shown, (0, 2, 0, 4)))
    return Group(*lines, Text())


def printable(text: str) -> str:
    """On one line, and nothing in it that a terminal would obey."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())


def excerpt(text: str, query: str, width: int) -> str:
    """The `width` characters of a text that hold most of a query's words, cut between words."""
    if len(text) <= width:
        return text
    words = _words(query)
    places = [m.start() for word in words for m in re.finditer(rf"(?i)\b{re.escape(word)}\b", text)]
    starts = [0, *(max(at - width // 4, 0) for at in sorted(places))]
    best = max(starts, key=lambda start: _found(text[start : start + width], words))
    if best:
        best = text.find(" ", best) + 1 or best
    stop = best + width
    if stop < len(text):
        stop = max(text.rfind(" ", best, stop), best + width // 2)
    return (_ELLIPSIS if best else "") + text[best:stop] + (_ELLIPSIS if stop < len(text) else "")


def _head(hit: Hit) -> Text:
    head = Text(f"{hit.rank:>2}  ")
    head.append(f"{hit.score:.4f}", style="bold")
    if hit.passage.get("title"):
        head.append(f"  {printable(hit.passage['title'])}", style="cyan")
    head.append(f"  {hit.passage['passage_id']}", style="dim")
    parts = "  ".join(f"{output} {score:.4f}" for output, score in hit.scores.items())
    head.append(f"  ({parts})", style="dim")
    return head


def _found(text: str, words: Sequence[str]) -> int:
    """How many of the words are in a text."""
    return sum(bool(re.search(rf"(?i)\b{re.escape(word)}\b", text)) for word in words)


def _words(query: str) -> list[str]:
    """Of more than two letters, each once; in scripts without spaces, what is between marks."""
    words = dict.fromkeys(word for word in re.findall(r"\w+", query) if len(word) > 2)
    return list(words)[:_WORDS]
