"""Searches for concurrent requests: a few at a time, in threads of their own.

    search = SearchService(service, searcher, generation)
    await search.answer(SearchBody(query="old bridges"))

The event loop encodes, as for any route; shards are asked by threads. Knows no Ray.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import numpy as np
import orjson
import pyarrow as pa
from pydantic import Field, model_validator

from actors.errors import IndexStateError
from actors.search.fusion import Level
from actors.text_vectors import TextVectors, columns_of
from pipelines.config.sections import Mode
from pipelines.endpoint.errors import ApiError
from pipelines.endpoint.explain import explain_hits, explain_query
from pipelines.endpoint.route_parts import Body, Weight, all_vectors
from pipelines.endpoint.service import Backlog, Service
from pipelines.endpoint.texts import Text
from pipelines.search.answers import Hit, find
from pipelines.search.searcher import MODES, Searcher, ShardDownError, outputs_for

# One scores while another waits for its rows; shards share their cores between searches anyway.
_THREADS = 4
MOST_QUERIES = 64
MOST_EXPLAINED = 20


class SearchBody(Body):
    """A query, or several."""

    query: str | None = Field(None, examples=["when was the bridge built?"])
    queries: list[str] | None = Field(
        None, min_length=1, max_length=MOST_QUERIES, description="Several, instead of `query`."
    )
    top: Annotated[int, Field(ge=1, le=1_000)] = Field(10, description="Hits of each query.")
    mode: Mode | None = Field(
        None,
        description="What passages are ranked by: one output; hybrid, their weighted mean; rrf, "
        "reciprocal rank fusion. When not given: hybrid, or the only output there is.",
    )
    by: Level = Field("passage", description="Rank passages, or documents as their best passage.")
    columns: list[str] | None = Field(
        None, description="Columns of the index in each hit; all but binary and nested ones."
    )
    weights: tuple[Weight, Weight, Weight] | None = Field(
        None, description="Of dense, sparse and ColBERT in hybrid, instead of the configured ones."
    )
    explain: bool = Field(
        False,
        description=f"Say which tokens made the scores; with `top` of at most {MOST_EXPLAINED}.",
    )

    @model_validator(mode="after")
    def _check(self) -> SearchBody:
        if (self.query is None) == (self.queries is None):
            raise ValueError("expected either query or queries")
        if self.explain and self.top > MOST_EXPLAINED:
            raise ValueError(f"explain: expected top of at most {MOST_EXPLAINED}, got {self.top}")
        return self

    @property
    def texts(self) -> list[str]:
        """Those to search for."""
        return self.queries or [self.query or ""]


class SearchService:
    """An index of one generation, searched with the vectors of a service."""

    def __init__(self, service: Service, searcher: Searcher, generation: int) -> None:
        """`searcher`: of outputs that the service gives."""
        self._service = service
        self._searcher = searcher
        self._generation = generation
        nothing = searcher.take(np.zeros(0, np.int64)).schema
        self._columns = nothing.names
        self._plain = [field.name for field in nothing if _is_plain(field.type)]
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="search")
        limits, gauge = service.config.limits, service.metrics.queued_searches
        self._backlog = Backlog("searches", gauge, limits, limits.max_searches, retry_after=1)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """What there are vectors for; the first is the default."""
        outputs = self._searcher.outputs
        several: tuple[Mode, ...] = ("hybrid", "rrf") if len(outputs) > 1 else ()
        return (*several, *(mode for mode in MODES if mode in outputs))

    def facts(self) -> dict[str, object]:
        """For /info."""
        return {
            "generation": self._generation,
            "passages": self._searcher.rows,
            "modes": self.modes,
            "shards": self._searcher.shards,
        }

    async def answer(self, asked: SearchBody) -> tuple[bytes, int]:
        """What each query finds, as JSON; and how many queries were cut.

        Raises:
            ApiError: 413 too many hits, 422 no such mode or column, 429 too many searches, 503 a
                shard is down, or others kept it waiting; and as `Service.encode`, of the first
                query that has no vectors.
        """
        started = time.perf_counter()
        mode = asked.mode or self.modes[0]
        searcher = self._checked(asked, mode)
        with self._backlog.holding(1):
            texts = [Text("query", query) for query in asked.texts]
            encoded = await self._service.encode(texts, searcher.outputs)
            vectors = all_vectors(encoded, "queries[{}]" if asked.queries else "query")
            searched = time.perf_counter()
            loop = asyncio.get_running_loop()
            try:
                content = await loop.run_in_executor(
                    self._pool, self._search, searcher, asked, mode, vectors, started
                )
            except ShardDownError as error:
                raise ApiError(503, "shard_down", str(error), retry_after=5) from error
        metrics = self._service.metrics
        metrics.searches.labels(mode).inc(len(vectors))
        metrics.search_seconds.labels(mode).observe(time.perf_counter() - searched)
        return content, sum(each.truncated for each in vectors)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _checked(self, asked: SearchBody, mode: Mode) -> Searcher:
        """The searcher with the weights asked for."""
        hits, most = asked.top * len(asked.texts), self._service.config.limits.max_hits
        if hits > most:
            message = f"expected at most {most:,} hits (top times queries), got {hits:,}"
            raise ApiError(413, "too_many_hits", message, field="top")
        unknown = [name for name in asked.columns or () if name not in self._columns]
        if unknown:
            message = f"expected some of {', '.join(self._columns)}, got {unknown[0]:.80}"
            raise ApiError(422, "no_such_column", message, field="columns")
        if mode not in self.modes:
            message = f"expected one of {', '.join(self.modes)} (what is searched), got {mode}"
            raise ApiError(422, "no_such_mode", message, field="mode")
        if asked.weights is None:
            return self._searcher
        if mode != "hybrid":
            message = f"expected weights with mode=hybrid only, got mode={mode}"
            raise ApiError(422, "weights", message, field="weights")
        searcher = self._searcher.with_weights(asked.weights)
        try:
            outputs_for([mode], searcher.outputs, searcher.config)
        except IndexStateError as error:
            raise ApiError(422, "no_weight", error.message, field="weights") from error
        return searcher

    def _search(
        self,
        searcher: Searcher,
        asked: SearchBody,
        mode: Mode,
        vectors: Sequence[TextVectors],
        started: float,
    ) -> bytes:
        """In a thread of the pool."""
        waited, most = time.perf_counter() - started, self._service.config.limits.search_timeout_s
        if waited > most:  # behind searches that wait for a shard: all would wait as long again
            message = f"waited {waited:.0f} s for other searches, at most {most:g} s may be"
            raise ApiError(503, "search_timeout", message, retry_after=5)
        columns = self._plain if asked.columns is None else list(dict.fromkeys(asked.columns))
        queries = columns_of(vectors, searcher.outputs)
        found = find(searcher, queries, mode, asked.top, unit=asked.by, columns=columns)
        results = []
        for query, own, hits in zip(asked.texts, vectors, found, strict=True):
            bodies = [hit.to_json() for hit in hits]
            result: dict[str, Any] = {"query": query, "hits": bodies}
            if asked.explain:
                result["explain"] = explain_query(self._service.reader, query, own)
                for body, said in zip(bodies, self._explained(query, own, hits), strict=True):
                    body["explain"] = said
            results.append(result)
        body = {
            "model": self._service.encoder.info.name,
            "generation": self._generation,
            "mode": mode,
            "took_ms": round(1_000 * (time.perf_counter() - started), 1),
            "results": results,
        }
        return orjson.dumps(body, default=_other_value)

    def _explained(
        self, query: str, vectors: TextVectors, hits: Sequence[Hit]
    ) -> list[dict[str, Any]]:
        if not hits:
            return []
        columns = [name for name in ("text", "title", "truncated") if name in self._columns]
        rows = np.array([hit.row for hit in hits])
        passages = self._searcher.take(rows, columns, vectors=True)
        return explain_hits(self._service.reader, query, vectors, passages)


def _is_plain(kind: pa.DataType) -> bool:
    """Neither nested nor bytes: what may be large, and says nothing to a reader."""
    return not (
        pa.types.is_nested(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _other_value(value: Any) -> str:
    """What JSON has no word for: bytes as hexadecimal digits, a decimal number as text."""
    return value.hex() if isinstance(value, bytes) else str(value)
