"""Real texts in typical lengths: queries, paragraphs, articles, and a mixture of the three.

Cut from the bundled articles, deterministically and without end. Each pass over the articles cuts
them at other places, so that few texts are equal. Lengths are in words of about 1.3 tokens.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq

_ARTICLES = Path(__file__).parents[1] / "conf/data/simplewiki-1200.parquet"
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")

WORDS: dict[str, tuple[int, int]] = {
    "queries": (5, 14),
    "paragraphs": (22, 70),
    "articles": (80, 480),
    "full512": (900, 900),
}
"""The minimum and maximum words of a text; its last sentence or article is not cut."""
TOKENS = {"queries": 12, "paragraphs": 70, "articles": 400, "mixed": 160, "full512": 512}
"""The approximate tokens of a text, cut at 512."""
PROFILES = ("queries", "paragraphs", "articles", "mixed")


def corpus() -> list[str]:
    """Return the bundled articles."""
    return [str(text) for text in pq.read_table(_ARTICLES, columns=["text"])["text"].to_pylist()]


def texts(profile: str, count: int) -> list[str]:
    """Return the first texts of a profile.

    queries: the first words of sentences. paragraphs: whole sentences of one article. articles:
    whole articles, joined because the bundled ones are short; many exceed the 512 tokens that a
    model gets here. mixed: equal numbers of each.
    """
    if profile == "mixed":
        parts = [texts(name, -(-count // 3)) for name in ("queries", "paragraphs", "articles")]
        return [text for group in zip(*parts, strict=True) for text in group][:count]
    return list(islice(_endless(profile), count))


def _endless(profile: str) -> Iterator[str]:
    chosen, articles = random.Random(0), corpus()
    fewest, most = WORDS[profile]
    while True:
        chosen.shuffle(articles)
        if profile in ("articles", "full512"):
            yield from _joined(articles, chosen, fewest, most, "\n\n")
            continue
        for article in articles:
            sentences = [s for s in _SENTENCE_END.split(article) if s.strip()]
            if profile == "paragraphs":
                yield from _joined(sentences, chosen, fewest, most, " ")
            else:
                for sentence in sentences:
                    yield " ".join(sentence.split()[: chosen.randint(fewest, most)])


def _joined(
    pieces: list[str], chosen: random.Random, fewest: int, most: int, between: str
) -> Iterator[str]:
    """Join consecutive pieces up to a random number of words; drop the incomplete rest."""
    joined: list[str] = []
    words, target = 0, chosen.randint(fewest, most)
    for piece in pieces:
        joined.append(piece)
        words += len(piece.split())
        if words >= target:
            yield between.join(joined)
            joined, words, target = [], 0, chosen.randint(fewest, most)
