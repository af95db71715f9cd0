"""Search all shards of an index in parallel and merge their rankings.

    with open_searcher(index, outputs, config.search, config.ray) as searcher:
        _, rows_QK = searcher.search(encoder.encode_queries(texts), ["hybrid"], 10)["hybrid"]
        searcher.take(rows_QK[0], ["title", "text"])

The search is exact: it scores every live passage, unless `search.candidates` is set. Row numbers
count over all shards, in the order of the parts of the index. Shape suffixes: Q queries, K best
rows, M pairs, N rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast, get_args

import numpy as np
import pyarrow as pa

from actors.config import OUTPUTS, Output
from actors.errors import IndexStateError
from actors.search.fusion import (
    Best,
    Level,
    Weights,
    best_of_pairs,
    merge,
    reciprocal_rank_fusion,
    weighted_mean,
)
from pipelines.config.sections import Mode, SearchConfig

MODES: tuple[Mode, ...] = get_args(Mode)
"""The ways to rank: by one output, by their weighted mean, or by reciprocal rank fusion."""


class ShardDownError(Exception):
    """Raised when a shard has died or does not answer in time."""


class ShardCalls(Protocol):
    """A connection to one shard, in this process or in another."""

    def start(self, method: str, *args: Any, **named: Any) -> Callable[[], Any]:
        """Start a call of a `ShardHost` method. The returned function waits for the result."""


class Searcher:
    """A thread-safe search over all rows of a generation. `open_searcher` creates it."""

    def __init__(
        self, shards: Sequence[ShardCalls], outputs: Sequence[Output], config: SearchConfig
    ) -> None:
        """Connect to the shards, and wait until all of them are loaded."""
        self._shards = shards
        self.outputs = tuple(outputs)
        self.config = config
        rows = [wait() for wait in [shard.start("n_rows") for shard in shards]]
        self._firsts = np.concatenate([[0], np.cumsum(rows)])

    @property
    def rows(self) -> int:
        """The number of live passages."""
        return int(self._firsts[-1])

    @property
    def shards(self) -> int:
        """The number of shards."""
        return len(self._shards)

    def with_weights(self, weights: Weights) -> Searcher:
        """Return a searcher of the same rows with other weights for hybrid."""
        other = copy.copy(self)
        other.config = self.config.model_copy(update={"weights": weights})
        return other

    def search(
        self, queries: pa.Table, modes: Sequence[Mode], top: int, *, unit: Level = "passage"
    ) -> dict[Mode, Best]:
        """Return the best rows of each query by each mode. A document is given by its first row.

        `queries`: an encoder's columns, with the outputs that the modes need.

        Raises:
            IndexStateError: a mode needs an output that is not searched.
        """
        outputs_for(modes, self.outputs, self.config)
        top = min(top, max(self.rows, 1))
        queries = queries.select([o for o in self.outputs if o in queries.column_names])
        if self.config.candidates:
            return self._among_candidates(queries, modes, top, unit)
        if "rrf" not in modes:
            return self._rank(queries, modes, top, unit)
        by = [*self.outputs, *(mode for mode in modes if mode == "hybrid")]
        ranked = self._rank(queries, by, max(self.config.rrf_depth, top), unit)
        parts = [_first(ranked[output], self.config.rrf_depth) for output in self.outputs]
        ranked["rrf"] = reciprocal_rank_fusion(parts, top, self.config.rrf_k)
        return {mode: _first(ranked[mode], top) for mode in modes}

    def score(self, queries: pa.Table, query_M: np.ndarray, row_M: np.ndarray) -> pa.Table:
        """Return float32 [M] scores per output, and the bounds `first`, `stop` of each document."""
        table = self._by_shard(
            row_M,
            lambda shard, own, rows: shard.start("score", queries, query_M[own], rows),
        )
        moved_M = self._firsts[self._shard_of(row_M)]
        for name in ("first", "stop"):
            moved = pa.array(table[name].to_numpy() + moved_M)
            table = table.set_column(table.column_names.index(name), name, moved)
        return table

    def take(
        self, row_N: np.ndarray, columns: Sequence[str] | None = None, *, vectors: bool = False
    ) -> pa.Table:
        """Return these rows, in this order. `columns` defaults to all columns without vectors."""
        return self._by_shard(
            row_N, lambda shard, _, rows: shard.start("take", rows, columns, vectors)
        )

    def best_passages(
        self, queries: pa.Table, mode: Mode, query_M: np.ndarray, row_M: np.ndarray
    ) -> np.ndarray:
        """Return int64 [M], the row of the best passage of the document that contains each row.

        With rrf, which gives ranks and no scores, the weighted mean decides.
        """
        documents = self.score(queries, query_M, row_M)
        first, stop = documents["first"].to_numpy(), documents["stop"].to_numpy()
        lengths = stop - first
        pair = np.repeat(np.arange(len(row_M)), lengths)
        row = np.arange(len(pair)) + (first - np.cumsum(lengths) + lengths)[pair]
        scores = self._mode_scores(self.score(queries, query_M[pair], row), mode)
        return best_of_pairs(pair, row, scores, len(row_M), 1)[1][:, 0]

    def _rank(
        self, queries: pa.Table, by: Sequence[Any], top: int, unit: Level
    ) -> dict[Mode, Best]:
        if not by:
            return {}
        waits = [
            shard.start("rank", queries, by, top, unit=unit, weights=self.config.weights)
            for shard in self._shards
        ]
        answers = [wait() for wait in waits]
        for first, answer in zip(self._firsts[:-1], answers, strict=True):
            for name, (scores, rows) in answer.items():
                answer[name] = (scores, np.where(rows < 0, -1, rows + first))
        return {name: merge([answer[name] for answer in answers], top) for name in by}

    def _among_candidates(
        self, queries: pa.Table, modes: Sequence[Mode], top: int, unit: Level
    ) -> dict[Mode, Best]:
        """Rank by all other modes only the candidates that dense and sparse search find."""
        plain = [mode for mode in modes if mode in ("dense", "sparse")]
        found = self._rank(queries, plain, top, unit)
        others = [mode for mode in modes if mode not in plain]
        if not others:
            return found
        cheap = [output for output in self.outputs if output != "colbert"]
        if not cheap:
            raise IndexStateError(
                "search.candidates: expected dense or sparse vectors to find them, found none."
            )
        assert self.config.candidates is not None
        best = self._rank(queries, cheap, self.config.candidates, "passage")
        rows_QK = np.concatenate([rows for _, rows in best.values()], axis=1)
        query, place = np.nonzero(rows_QK >= 0)
        pairs = np.stack([query, rows_QK[query, place]], axis=1)
        query_M, row_M = np.unique(pairs, axis=0).T
        table = self.score(queries, query_M, row_M)
        if unit == "document":
            row_M = table["first"].to_numpy()
        n = len(queries)
        for mode in others:
            if mode != "rrf":
                scores = self._mode_scores(table, mode)
                found[mode] = _best_rows(query_M, row_M, scores, n, top)
            else:
                depth = self.config.rrf_depth
                parts = [
                    _best_rows(query_M, row_M, table[o].to_numpy(), n, depth, o == "sparse")
                    for o in self.outputs
                ]
                found[mode] = reciprocal_rank_fusion(parts, top, self.config.rrf_k)
        return found

    def _mode_scores(self, table: pa.Table, mode: Mode) -> np.ndarray:
        if mode in self.outputs:
            return np.asarray(table[mode].to_numpy())
        scores = {output: table[output].to_numpy() for output in self.outputs}
        return weighted_mean(cast("dict[Output, np.ndarray]", scores), self.config.weights)

    def _by_shard(
        self, row_N: np.ndarray, start: Callable[[ShardCalls, np.ndarray, np.ndarray], Any]
    ) -> pa.Table:
        """Call `start(shard, positions in row_N, own rows)` per shard; keep the order of row_N."""
        at = self._shard_of(row_N)
        owns, waits = [], []
        for number in np.unique(at) if len(row_N) else [0]:
            own = np.flatnonzero(at == number)
            owns.append(own)
            waits.append(start(self._shards[number], own, row_N[own] - int(self._firsts[number])))
        order = np.argsort(np.concatenate(owns), kind="stable")
        return pa.concat_tables([wait() for wait in waits]).take(pa.array(order))

    def _shard_of(self, row_N: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._firsts, row_N, side="right") - 1


def _first(best: Best, top: int) -> Best:
    scores_QK, rows_QK = best
    return scores_QK[:, :top], rows_QK[:, :top]


def _best_rows(
    query_M: np.ndarray,
    row_M: np.ndarray,
    score_M: np.ndarray,
    queries: int,
    top: int,
    positive: bool = False,
) -> Best:
    """Return the best rows of pairs in which a row may occur several times, by its best score."""
    order = np.lexsort((-score_M, row_M, query_M))
    query_M, row_M, score_M = query_M[order], row_M[order], score_M[order]
    pairs = np.stack([query_M, row_M], axis=1)
    kept = np.concatenate([[True], (np.diff(pairs, axis=0) != 0).any(axis=1)])[: len(pairs)]
    if positive:
        kept &= score_M > 0
    return best_of_pairs(query_M[kept], row_M[kept], score_M[kept], queries, top)


def outputs_for(
    modes: Sequence[Mode], outputs: Sequence[str], config: SearchConfig
) -> tuple[Output, ...]:
    """Return those `outputs` of an index that the modes need.

    Raises:
        IndexStateError: the index lacks the output of a mode, or all weights of hybrid are 0.
    """
    has: tuple[Output, ...] = tuple(output for output in OUTPUTS if output in outputs)
    several = ("hybrid", "rrf") if len(has) > 1 else ()
    for mode in modes:
        if mode not in MODES or (mode in OUTPUTS and mode not in has):
            raise IndexStateError(
                f"mode: expected one of {', '.join([*has, *several])}, got {mode}.",
                "The index has no vectors for it." if mode in MODES else "",
            )
    weight = dict(zip(OUTPUTS, config.weights, strict=True))
    if "hybrid" in modes and not any(weight[output] for output in has):
        raise IndexStateError(
            f"search.weights: expected a weight other than 0 for {' or '.join(has)}, the vectors "
            f"of the index, got {list(config.weights)}."
        )
    # Dense and sparse vectors find the candidates, even if only ColBERT ranks them.
    combined = any(mode not in OUTPUTS for mode in modes) or (
        config.candidates is not None and "colbert" in modes
    )
    return tuple(output for output in has if combined or output in modes)
