"""Turn ranked rows into answers: hits with scores and columns, optionally reranked or printed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from actors.config import RerankerConfig
from actors.errors import IndexStateError
from actors.models.reranker_files import resolve_reranker
from actors.search.fusion import Level
from actors.tokens.tokenizer import encoder_input
from pipelines.config.sections import Mode
from pipelines.search.searcher import Searcher

if TYPE_CHECKING:
    from actors.reranker import Reranker


DEFAULT_RERANK_TOP = 100
"""Default number of hits per query that a reranker scores."""
RERANK = "rerank"
"""The name of a reranker's scores."""


@dataclass(frozen=True)
class Hit:
    """A passage that was found for a query."""

    rank: int
    """The rank among the hits of the query, from 1."""
    score: float
    """The score by the requested mode."""
    scores: dict[str, float]
    """The score by each output, and by the reranker if there was one."""
    row: int
    """The row number of the passage in the searcher."""
    passage: dict[str, Any]
    """Columns of the index, without vectors."""

    def to_json(self) -> dict[str, Any]:
        """Return rank and scores, then the columns. A column never replaces a rank or score."""
        own = {"rank": self.rank, "score": self.score, "scores": self.scores}
        return own | self.passage | own


def find(
    searcher: Searcher,
    queries: pa.Table,
    mode: Mode,
    top: int,
    *,
    unit: Level = "passage",
    columns: Sequence[str] | None = None,
) -> list[list[Hit]]:
    """Return the `top` hits of each query, best first. A document appears as its best passage.

    `queries`: an encoder's columns. Raises as `Searcher.search`.
    """
    scores_QK, rows_QK = searcher.search(queries, [mode], top, unit=unit)[mode]
    query_M, place_M = np.nonzero(rows_QK >= 0)
    row_M = rows_QK[query_M, place_M]
    if unit == "document" and len(row_M):
        row_M = searcher.best_passages(queries, mode, query_M, row_M)
    parts = searcher.score(queries, query_M, row_M)
    # A table without columns has no rows either, so do not take one.
    bare = columns is not None and not columns
    passages = [{} for _ in row_M] if bare else searcher.take(row_M, columns).to_pylist()
    found: list[list[Hit]] = [[] for _ in range(len(queries))]
    for m, (query, place) in enumerate(zip(query_M.tolist(), place_M.tolist(), strict=True)):
        found[query].append(
            Hit(
                rank=place + 1,
                score=float(scores_QK[query, place]),
                scores={output: float(parts[output][m].as_py()) for output in searcher.outputs},
                row=int(row_M[m]),
                passage=passages[m],
            )
        )
    return found


_EXCERPT = 320
_ELLIPSIS = "…"
_WORDS = 64  # words of a query searched for in a text; each takes one pass over the text


def answers_text(query: str, hits: Sequence[Hit], *, whole: bool) -> Group:
    """Return the hits of one query for a terminal, as whole passages or as excerpts."""
    lines: list[Text | Padding] = [Text(printable(query), style="bold")]
    if not hits:
        lines.append(Padding(Text("nothing found", style="dim"), (0, 0, 0, 4)))
    for hit in hits:
        lines.append(_head(hit))
        text = printable(hit.passage.get("text") or "")
        if text:
            shown = Text(text if whole else excerpt(text, query, _EXCERPT))
            for word in _words(query):
                shown.highlight_regex(word, "bold")
            lines.append(Padding(shown, (0, 2, 0, 4)))
    return Group(*lines, Text())


def printable(text: str) -> str:
    """Return a text on one line, without control characters that a terminal would interpret."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())


def excerpt(text: str, query: str, width: int) -> str:
    """Return about `width` characters of a text with most of the query's words, cut at blanks."""
    if len(text) <= width:
        return text
    words = _words(query)
    places = [found.start() for word in words for found in word.finditer(text)]
    starts = [0, *(max(at - width // 4, 0) for at in sorted(places))]

    def words_from(start: int) -> int:
        part = text[start : start + width]
        return sum(bool(word.search(part)) for word in words)

    best = max(starts, key=words_from)
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


def _words(query: str) -> list[re.Pattern[str]]:
    """Return patterns of the distinct words of at least three letters.

    In scripts without spaces, a run of letters between punctuation marks counts as a word.
    """
    words = dict.fromkeys(re.findall(r"\w{3,}", query))
    return [re.compile(rf"(?i)\b{re.escape(word)}\b") for word in islice(words, _WORDS)]


def check_can_rerank(config: RerankerConfig, *, has_texts: bool) -> None:
    """Check, before a search, that its hits can be reranked.

    `has_texts`: the index stores the texts of its passages.

    Raises:
        ModelError: no such reranker. IndexStateError: the index has no texts.
    """
    resolve_reranker(config)
    if not has_texts:
        raise IndexStateError(
            "rerank: expected the passages' texts in the index, found none.",
            "Embed with index.store_text: true.",
        )


def rerank(
    reranker: Reranker,
    queries: Sequence[str],
    answers: Sequence[Sequence[Hit]],
    *,
    title_prefix: bool,
) -> list[list[Hit]]:
    """Return the hits of each query sorted by the reranker's score; ties keep their order.

    `title_prefix`: put the title before the text, as the encoder did.

    Raises:
        EncodeError: a pair cannot be scored.
    """
    pairs = [
        (query, _text(hit, title_prefix))
        for query, hits in zip(queries, answers, strict=True)
        for hit in hits
    ]
    scores = reranker.score(pairs)
    if scores.ndim > 1:  # one score per layer: take that of the last layer
        scores = scores[:, -1]
    found = []
    ends = np.cumsum([len(hits) for hits in answers])
    # Without queries, np.split still returns one empty part.
    for hits, own in zip(answers, np.split(scores, ends[:-1]), strict=False):
        order = np.argsort(-own, kind="stable")
        found.append(
            [
                dataclasses.replace(
                    hits[place],
                    rank=rank,
                    score=float(own[place]),
                    scores=hits[place].scores | {RERANK: float(own[place])},
                )
                for rank, place in enumerate(order.tolist(), 1)
            ]
        )
    return found


def _text(hit: Hit, title_prefix: bool) -> str:
    text: str = hit.passage["text"]
    return encoder_input(hit.passage.get("title"), text) if title_prefix else text
