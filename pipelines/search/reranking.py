"""The second stage: what a search has found, in the order a reranker gives it.

hits = find(searcher, vectors, "hybrid", 100)
rerank(reranker, ["what is ray"], hits, title_prefix=False)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from actors.config import RerankerConfig
from actors.errors import IndexStateError
from actors.tokenizer import encoder_input
from pipelines.search.answers import RERANK, Hit

if TYPE_CHECKING:
    from actors.reranker import Reranker  # torch


def check_can_rerank(config: RerankerConfig, *, has_texts: bool) -> None:
    """What would stop a reranker, as far as it shows before anything is searched.

    `has_texts`: the index holds its passages' texts.

    Raises:
        ModelError: no such reranker. IndexStateError: no texts.
    """
    from actors.rerank.checkpoint import resolve_reranker  # torch

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
    """The hits of each query by the reranker's score, best first; equal scores as they were.

    `title_prefix`: passages are read with their titles before them, as the encoder read them.

    Raises:
        EncodeError: a pair that cannot be scored.
    """
    pairs = [
        (query, _text(hit, title_prefix))
        for query, hits in zip(queries, answers, strict=True)
        for hit in hits
    ]
    scores = reranker.score(pairs)
    if scores.ndim > 1:  # of several layers: the last one has seen most
        scores = scores[:, -1]
    found, at = [], 0
    for hits in answers:
        own = scores[at : at + len(hits)]
        at += len(hits)
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
