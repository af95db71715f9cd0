"""Ranked rows as answers: what was found for each query, its scores, its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from actors.search.fusion import Level
from pipelines.config_sections import Mode
from pipelines.search.searcher import Searcher

RERANK = "rerank"
"""What a reranker's scores are called."""


@dataclass(frozen=True)
class Hit:
    """One passage that was found."""

    rank: int
    """From 1."""
    score: float
    """By the mode that was asked for."""
    scores: dict[str, float]
    """By each output, and by a reranker that has ordered them."""
    row: int
    """Of the searcher."""
    passage: dict[str, Any]
    """Columns of the index that are no vectors."""


def find(
    searcher: Searcher,
    queries: pa.Table,
    mode: Mode,
    top: int,
    *,
    unit: Level = "passage",
    columns: Sequence[str] | None = None,
) -> list[list[Hit]]:
    """The best of each query, best first; documents as the passage that answers best.

    `queries`: an encoder's columns. Raises as `Searcher.search`.
    """
    scores_QK, rows_QK = searcher.search(queries, [mode], top, unit=unit)[mode]
    query_M, place_M = np.nonzero(rows_QK >= 0)
    row_M = rows_QK[query_M, place_M]
    if unit == "document" and len(row_M):
        row_M = searcher.best_passages(queries, mode, query_M, row_M)
    parts = searcher.score(queries, query_M, row_M)
    # Not asked for no column at all: a table without any has no rows either.
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
