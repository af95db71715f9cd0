"""Search an index for concurrent requests, a few requests at a time in a thread pool.

    search = SearchService(service, searcher, generation)
    await search.answer(SearchBody(query="old bridges"))

`Service` encodes the queries, as for every route; the threads call the shards. Independent of Ray.
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

# One search scores while another waits for its rows. More threads would only share the same cores.
_THREADS = 4
MOST_QUERIES = 64
MOST_EXPLAINED = 20


class SearchBody(Body):
    """The body of a search request: one query or several."""

    query: str | None = Field(None, examples=["when was the bridge built?"])
    queries: list[str] | None = Field(
        None,
        min_length=1,
        max_length=MOST_QUERIES,
        description="Use instead of `query`.",
    )
    top: Annotated[int, Field(ge=1, le=1_000)] = Field(10, description="Hits per query.")
    mode: Mode | None = Field(
        None,
        description="Ranking: one output; hybrid, the weighted mean of the scores; or rrf, "
        "reciprocal rank fusion. Default: hybrid, or the only output.",
    )
    by: Level = Field("passage", description="Rank passages, or documents by their best passage.")
    columns: list[str] | None = Field(
        None, description="Index columns in each hit; default: all except binary and nested ones."
    )
    weights: tuple[Weight, Weight, Weight] | None = Field(
        None, description="Weights of dense, sparse and ColBERT in hybrid; default: as configured."
    )
    explain: bool = Field(
        False,
        description=f"Explain the scores by tokens; requires `top` of at most {MOST_EXPLAINED}.",
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
        """The queries as a list."""
        return self.queries or [self.query or ""]


class SearchService:
    """Search in one generation of an index, with query vectors from a `Service`."""

    def __init__(self, service: Service, searcher: Searcher, generation: int) -> None:
        """`searcher` must use only outputs that `service` computes."""
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
        """The modes that the searcher's vectors allow. The first is the default."""
        outputs = self._searcher.outputs
        several: tuple[Mode, ...] = ("hybrid", "rrf") if len(outputs) > 1 else ()
        return (*several, *(mode for mode in MODES if mode in outputs))

    def facts(self) -> dict[str, object]:
        """Return the description of the search for /info."""
        return {
            "generation": self._generation,
            "passages": self._searcher.rows,
            "modes": self.modes,
            "shards": self._searcher.shards,
        }

    async def answer(self, asked: SearchBody) -> tuple[bytes, int]:
        """Return the hits of each query as JSON, and the number of truncated queries.

        Raises:
            ApiError: 413 too many hits, 422 no such mode or column, 429 too many searches, 503 a
                shard is down or the search waited too long. Also as `Service.encode`, and the error
                of the first query without vectors.
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
        """Stop the threads."""
        self._pool.shutdown()

    def _checked(self, asked: SearchBody, mode: Mode) -> Searcher:
        """Check a request, and return the searcher with its weights."""
        hits, most = asked.top * len(asked.texts), self._service.config.limits.max_hits
        if hits > most:
            message = f"expected at most {most:,} hits (top x queries), got {hits:,}"
            raise ApiError(413, "too_many_hits", message, field="top")
        unknown = [name for name in asked.columns or () if name not in self._columns]
        if unknown:
            message = f"expected columns out of {', '.join(self._columns)}, got {unknown[0]:.80}"
            raise ApiError(422, "no_such_column", message, field="columns")
        if mode not in self.modes:
            message = f"expected one of {', '.join(self.modes)} (modes searched), got {mode}"
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
        """Search and return the response as JSON. Runs in a thread of the pool."""
        waited, most = time.perf_counter() - started, self._service.config.limits.search_timeout_s
        if waited > most:  # earlier searches wait for a dead shard, as this one would
            message = (
                f"expected to wait at most {most:g} s for other searches, found {waited:.0f} s"
            )
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
    """Return whether a type is neither nested nor binary; those may be large and are unreadable."""
    return not (
        pa.types.is_nested(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _other_value(value: Any) -> str:
    """Return a value that JSON cannot express as text; bytes as hexadecimal digits."""
    return value.hex() if isinstance(value, bytes) else str(value)
