"""Encode the texts of requests within the endpoint's limits; every route uses this service.

    service = Service(encoder, config, ChunkConfig())
    await service.encode([Text("query", "what is ray")], ("dense",))

The service runs on one event loop and never blocks it: the batcher's threads tokenise and encode.
It is independent of HTTP and Ray.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeAlias, TypeVar

from prometheus_client import Gauge

from actors.batching import Batcher, Result
from actors.config import Output
from actors.encoder import Encoder
from actors.errors import EncodeError
from actors.text_vectors import TextVectors
from pipelines.config.sections import ChunkConfig
from pipelines.endpoint.config import EndpointConfig, Limits
from pipelines.endpoint.errors import ApiError, encoding_fault, refuse_too_many
from pipelines.endpoint.metrics import EndpointMetrics
from pipelines.endpoint.texts import Text, TextReader

Outcome: TypeAlias = TextVectors | ApiError
"""The result of one text: its vectors, or the reason why it has none."""
Key = TypeVar("Key")

# Bytes per entry in addition to its arrays: objects, array headers and the dict slot.
_OVERHEAD = 600


class VectorCache(Generic[Key]):
    """A least-recently-used cache of vectors, for one thread (that of the event loop)."""

    def __init__(self, max_bytes: int) -> None:
        """With 0 the cache keeps nothing."""
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Key, tuple[TextVectors, int]] = OrderedDict()
        self.nbytes = 0
        """Bytes held now."""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key, outputs: Collection[Output]) -> TextVectors | None:
        """Return the vectors of a text if they contain all of these outputs, else None."""
        found = self._entries.get(key)
        if found is None or not found[0].has(outputs):
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, key: Key, vectors: TextVectors, key_bytes: int) -> None:
        """Store a copy, unless it alone exceeds the capacity of the cache."""
        size = vectors.nbytes + key_bytes + _OVERHEAD
        if size > self._max_bytes:
            return
        before = self._entries.pop(key, None)
        self.nbytes += size - (before[1] if before else 0)
        self._entries[key] = (vectors.copy(), size)
        while self.nbytes > self._max_bytes:
            _, (_, oldest) = self._entries.popitem(last=False)
            self.nbytes -= oldest


# Time constant of the moving average of the throughput, which is in items per second.
_RATE_SECONDS = 5.0


class Backlog:
    """The items that wait or are being computed, limited in number; for one event loop."""

    def __init__(
        self,
        what: str,
        gauge: Gauge,
        limits: Limits,
        most: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        """`what`: the items' name in messages. `gauge`: metric of their number. `most`: limit of
        their number (default: `max_queued_texts`). `retry_after`: seconds after which a refused
        client may retry (default: an estimate from the recent throughput).
        """
        self._what, self._gauge, self._retry_after = what, gauge, retry_after
        self._most = most or limits.max_queued_texts
        self._most_characters = limits.max_queued_characters
        self.items = self._characters = 0
        self._done, self._done_at = 0.0, time.monotonic()

    @contextmanager
    def holding(self, items: int, characters: int = 0) -> Iterator[None]:
        """Count these items while the `with` block runs.

        Raises:
            ApiError: 429, the backlog would exceed a limit. An empty one accepts any request.
        """
        if self.items and (
            self.items + items > self._most or self._characters + characters > self._most_characters
        ):
            message = f"{self.items:,} {self._what} are waiting, at most {self._most:,} may wait"
            seconds = self._retry_after or self.items / max(self._per_second(), 1.0)
            raise ApiError(429, "queue_full", message, retry_after=seconds)
        self._add(items, characters)
        try:
            yield
        finally:
            self._add(-items, -characters)
        self._per_second(items)

    def _add(self, items: int, characters: int) -> None:
        self.items += items
        self._characters += characters
        self._gauge.set(self.items)

    def _per_second(self, done: int = 0) -> float:
        """Return the recent throughput in items per second, after adding `done` items."""
        now = time.monotonic()
        self._done = self._done * 0.5 ** ((now - self._done_at) / _RATE_SECONDS) + done
        self._done_at = now
        return self._done / _RATE_SECONDS


_WARM_UP = ("warm", "warm " * 64, "warm " * 1_024)


class Service:
    """An encoder shared by concurrent requests."""

    def __init__(
        self, encoder: Encoder, config: EndpointConfig, chunk: ChunkConfig | None = None
    ) -> None:
        """`chunk`: the index's chunker settings, which say how titles precede passages."""
        self.encoder = encoder
        self.config = config
        self.metrics = EndpointMetrics()
        self.chunk = chunk or ChunkConfig(by="none", title_prefix=True)
        self.reader = TextReader(encoder, self.chunk, config.limits.max_tokens)
        self._batcher = Batcher(
            self.reader.tokenize,
            encoder.stream,
            max_tokens=lambda: encoder.max_batch_tokens,
            weigh=lambda text: text.characters,
            overlap=encoder.info.device != "cpu",
            observe=self.metrics.observe,
        )
        self._cache: VectorCache[Text] = VectorCache(config.cache.max_bytes)
        self.is_warm = False
        """True after `warm_up`. Until then requests are answered with 503."""
        self._backlog = Backlog("texts", self.metrics.queued_texts, config.limits)

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The outputs that the encoder computes."""
        return self.encoder.info.outputs

    async def encode(
        self, texts: Sequence[Text], outputs: Collection[Output], *, truncate: bool | None = None
    ) -> list[Outcome]:
        """Return the outcome of each text, in order. A fault of one text does not affect others.

        `truncate`: cut a text that is too long, or make it a fault; None: as configured.

        Raises:
            ApiError: 413 too many texts or ColBERT vectors, 422 an output that the model does not
                compute, 429 the queue is full.
        """
        self._check_outputs(outputs)
        limits = self.config.limits
        refuse_too_many(texts, limits.max_texts)
        if "colbert" in outputs:
            self._check_colbert(texts)
        found = [(text, self._known(text, outputs)) for text in texts]
        todo = [text for text, known in found if known is None]
        computed = iter(await self._compute(todo, outputs) if todo else ())
        may_cut = truncate if truncate is not None else limits.too_long == "truncate"
        return [self._finished(text, known or next(computed), may_cut) for text, known in found]

    async def check(self) -> None:
        """Encode a text ahead of the queue, as a health check.

        Raises:
            EncodeError: the encoder fails.
        """
        await self._check_texts(["health"])

    async def warm_up(self) -> None:
        """Encode texts of several lengths, to select kernels and fill caches before traffic."""
        await self._check_texts(_WARM_UP)
        self.is_warm = True

    def close(self) -> None:
        """Finish the accepted requests and stop the threads."""
        self._batcher.close()

    async def _check_texts(self, texts: Sequence[str]) -> None:
        future = self._batcher.submit(
            [Text(kind, text) for text in texts for kind in ("query", "passage")],
            self.outputs,
            first=True,
        )
        for result in await asyncio.wrap_future(future):
            if isinstance(result, EncodeError):
                raise result

    def _check_outputs(self, outputs: Collection[Output]) -> None:
        missing = [output for output in outputs if output not in self.outputs]
        if missing:
            expected = f"some of {', '.join(self.outputs)} (the outputs of this endpoint)"
            message = f"expected {expected}, got {missing[0]}"
            raise ApiError(422, "no_such_output", message, field="outputs")

    def _check_colbert(self, texts: Sequence[Text]) -> None:
        most = self.config.limits.max_colbert_tokens
        tokens = sum(min(t.characters, self.reader.max_tokens(t.kind)) for t in texts)
        if len(texts) > 1 and tokens > most:
            message = (
                f"expected at most {most:,} tokens with ColBERT, got up to {tokens:,}; send the "
                "texts in several requests, or leave colbert out of outputs"
            )
            raise ApiError(413, "too_many_tokens", message)

    def _known(self, text: Text, outputs: Collection[Output]) -> Outcome | None:
        if fault := _fault(text):
            return fault
        if not self.config.cache.max_bytes or text.kind != "query":
            return None
        cached = self._cache.get(text, outputs)
        (self.metrics.cache_hits if cached else self.metrics.cache_misses).inc()
        return cached

    async def _compute(self, texts: list[Text], outputs: Collection[Output]) -> list[Outcome]:
        characters = sum(text.characters for text in texts)
        with self._backlog.holding(len(texts), characters):
            results = await asyncio.wrap_future(self._batcher.submit(texts, outputs))
        return [self._kept(text, result) for text, result in zip(texts, results, strict=True)]

    def _kept(self, text: Text, result: Result) -> Outcome:
        if isinstance(result, EncodeError):
            return ApiError(424, "encoder_error", result.message)
        if self.config.cache.max_bytes and text.kind == "query":
            self._cache.put(text, result, 2 * text.characters)
            self.metrics.cache_bytes.set(self._cache.nbytes)
        return result

    def _finished(self, text: Text, result: Outcome, may_cut: bool) -> Outcome:
        if isinstance(result, TextVectors):
            if not result.truncated:
                return result
            self.metrics.truncated.inc()
            if may_cut:
                return result
            limit = self.reader.max_tokens(text.kind)
            result = ApiError(413, "too_long", f"expected at most {limit:,} tokens, found more")
        self.metrics.text_faults.labels(result.code).inc()
        return result


def _fault(text: Text) -> ApiError | None:
    """Return why a text cannot be encoded, by the same rules that reject documents, else None."""
    if text.ids is not None:
        return None
    if not text.text.strip():
        return ApiError(400, "empty_text", "expected a text, found nothing but whitespace")
    return encoding_fault(text.text) or encoding_fault(text.title or "")
