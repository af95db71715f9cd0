"""Score texts for queries with a reranker that concurrent requests share.

    rerank = RerankService(reranker, config, metrics)
    await rerank.score("what is ray", ["an engine", "a fish"], "texts")

The service runs on one event loop and never blocks it: the batcher's thread tokenises and scores.
It is independent of HTTP and Ray.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np

from actors.errors import EncodeError
from actors.pair_batching import PairBatcher, PairScores
from actors.reranker import Reranker
from pipelines.endpoint.config import EndpointConfig
from pipelines.endpoint.errors import ApiError, encoding_fault, refuse_too_many
from pipelines.endpoint.metrics import EndpointMetrics
from pipelines.endpoint.service import Backlog

_FACTS = ("name", "revision", "kind", "max_length", "query_max_length", "dtype")


class RerankService:
    """A reranker shared by concurrent requests."""

    def __init__(
        self, reranker: Reranker, config: EndpointConfig, metrics: EndpointMetrics
    ) -> None:
        """`reranker` gives one score per pair; `metrics` are those of the replica."""
        self.info = reranker.info
        self._limits = config.limits
        own = config.reranker.too_long if config.reranker else "truncate"
        self._may_cut = "refuse" not in (own, config.limits.too_long)
        self._metrics = metrics
        self._batcher = PairBatcher(reranker, metrics.observe_rerank)
        self._backlog = Backlog("pairs", metrics.queued_pairs, config.limits)

    def facts(self) -> dict[str, object]:
        """Return the description of the reranker for /info."""
        return {name: getattr(self.info, name) for name in _FACTS}

    async def score(
        self,
        query: str,
        texts: Sequence[str],
        field: str,
        *,
        truncate: bool | None = None,
        max_text_tokens: int | None = None,
        keep_end: bool = False,
    ) -> PairScores:
        """Return a score for each text, in order.

        `field`: name of the texts in errors. `truncate`: cut (True) or refuse (False) pairs that
        are too long; None: as configured. `max_text_tokens`: cut longer texts first, whatever
        `truncate` says. `keep_end`: cut the beginning of a query or text instead of its end.

        Raises:
            ApiError: 400 no text, 413 too many texts or a too long pair, 422 not Unicode, 424 a
                pair cannot be scored, 429 the queue is full.
        """
        self._check(query, texts, field)
        started = time.perf_counter()
        characters = len(query) + sum(map(len, texts))
        with self._backlog.holding(len(texts), characters):
            try:
                found = await asyncio.wrap_future(
                    self._batcher.submit(
                        query, texts, max_passage_tokens=max_text_tokens, keep_end=keep_end
                    )
                )
            except EncodeError as error:
                raise ApiError(424, "encoder_error", error.message) from error
        may_cut = truncate if truncate is not None else self._may_cut
        too_long = np.flatnonzero(found.too_long)
        if len(too_long) and not may_cut:
            message = (
                f"expected at most {self.info.max_length:,} tokens including the query, and at "
                f"most {self.info.query_max_length:,} in the query, found more"
            )
            raise self._counted(ApiError(413, "too_long", message), int(too_long[0]), field)
        for row, reason in found.failures.items():
            message = f"the pair cannot be scored ({reason})"
            raise self._counted(ApiError(424, "encoder_error", message), row, field)
        self._metrics.truncated.inc(int(found.truncated.sum()))
        self._metrics.reranks.inc()
        self._metrics.rerank_seconds.observe(time.perf_counter() - started)
        return found

    async def warm_up(self) -> None:
        """Score pairs of several lengths.

        Raises:
            EncodeError: the reranker fails on one of them.
        """
        texts = ["warm " * n for n in (1, 64, 1_024)]
        found = await asyncio.wrap_future(self._batcher.submit("warm", texts))
        for reason in found.failures.values():
            raise EncodeError(f"the reranker {self.info.name} cannot score: {reason}.")

    def close(self) -> None:
        """Finish the accepted requests and stop the thread."""
        self._batcher.close()

    def _check(self, query: str, texts: Sequence[str], field: str) -> None:
        if not texts:
            raise ApiError(400, "empty", "expected texts, found none", field=field)
        refuse_too_many(texts, self._limits.max_texts, field)
        if fault := encoding_fault(query):
            raise fault.at("query")
        for row, text in enumerate(texts):
            if fault := encoding_fault(text):
                raise self._counted(fault, row, field)

    def _counted(self, fault: ApiError, row: int, field: str) -> ApiError:
        self._metrics.text_faults.labels(fault.code).inc()
        return fault.at(f"{field}[{row}]")
