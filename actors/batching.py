"""Batch texts of concurrent requests into shared forward passes (dynamic batching).

    batcher = Batcher(tokenize, encoder.stream, max_tokens=lambda: 2048, weigh=len, overlap=True)
    batcher.submit(texts, outputs=("dense",)).result()     # a TextVectors or EncodeError per text

An idle encoder starts immediately with the texts that wait; while it is busy the next batch fills
up to a token budget. One thread encodes; with a GPU a second thread tokenises at the same time. A
request that exceeds the budget takes several passes. A text that cannot be encoded does not affect
the others. Independent of HTTP and event loops.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa

from actors.config import Output
from actors.encoded import EncodedBatch
from actors.errors import EncodeError, ModelError
from actors.text_vectors import TextVectors, rows_of
from actors.tokens.tokenizer import TokenizedTexts

Text = TypeVar("Text")
Item = TypeVar("Item", bound="Waiting")
Result = TextVectors | EncodeError
Stream: TypeAlias = Callable[[pa.ListArray, Collection[Output]], Iterator[EncodedBatch]]
"""Type of `Encoder.stream`."""

# Most texts and characters tokenised at once: enough to keep a thread busy, but few enough that a
# short query does not wait long behind a book.
_TOKENIZE_TEXTS = 256
_TOKENIZE_WEIGHT = 1 << 16


@dataclass(kw_only=True)
class Waiting:
    """An item of a queue: a request or a part of one."""

    future: Future[Any] = field(default_factory=Future)
    """Future of the result, held by the caller."""
    first: bool = False
    """Whether the item goes to the front of the queue."""
    weight: int = 1
    """Cost that counts against the limit when items are taken."""


class RequestQueue(Generic[Item]):
    """A queue of requests for a model, with the threads that process it; `close` ends them."""

    def __init__(self, model: str, **threads: Callable[[], None]) -> None:
        """`model`: its name in messages; `threads`: {thread name: function it runs}."""
        self._model = model
        self._changed = threading.Condition()
        self._arrived: deque[Item] = deque()
        self._closed = False
        self._threads = [
            threading.Thread(target=run, name=name, daemon=True) for name, run in threads.items()
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Process all submitted requests, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _arrive(self, items: Sequence[Item]) -> None:
        with self._changed:
            if self._closed:
                raise ModelError(f"the {self._model} is shutting down.", "Send the request again.")
            self._put(self._arrived, items)

    def _put(self, queue: deque[Item], items: Sequence[Item]) -> None:
        with self._changed:
            queue.extendleft(item for item in reversed(items) if item.first)
            queue.extend(item for item in items if not item.first)
            self._changed.notify_all()

    def _take(self, queue: deque[Item], count: int, weight: int) -> list[Item]:
        """Remove and return up to `count` open items within a total `weight`, at least one."""
        taken: list[Item] = []
        with self._changed:
            while queue and len(taken) < count:
                if queue[0].future.done():  # cancelled or failed
                    queue.popleft()
                    continue
                weight -= queue[0].weight
                if taken and weight < 0:
                    break
                taken.append(queue.popleft())
        return taken


def answer(future: Future[Any], result: Any) -> None:
    """Set the result or exception of a future; do nothing if it is cancelled or done."""
    with suppress(InvalidStateError):
        (future.set_exception if isinstance(result, Exception) else future.set_result)(result)


def failure(error: Exception) -> EncodeError:
    """Return the EncodeError that reports an exception of a device, kernel or tokenizer."""
    return EncodeError(f"{type(error).__name__}: {error!s:.200}")


@dataclass(frozen=True)
class ForwardStats:
    """Metrics of one forward pass."""

    texts: int
    tokens: int
    budget: int
    """Token budget of the pass."""
    seconds: float
    waited: float
    """Seconds that the oldest text waited before the pass began."""


@dataclass
class _Job:
    """One request."""

    outputs: frozenset[Output]
    results: list[Result | None]
    pending: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Guards `results` and `pending`, since both threads may finish texts."""
    arrived: float = field(default_factory=time.perf_counter)


@dataclass
class _Item(Waiting, Generic[Text]):
    """One text of a request; its weight is in characters, after tokenisation in tokens."""

    job: _Job
    row: int
    text: Text
    ids: np.ndarray | None = None
    truncated: bool = False

    def done(self, result: Result) -> None:
        job = self.job
        with job.lock:
            job.results[self.row] = result
            job.pending -= 1
            if job.pending:
                return
        answer(self.future, job.results)


class Batcher(RequestQueue[_Item[Text]]):
    """A queue of texts in front of an encoder, processed by one or two threads."""

    def __init__(
        self,
        tokenize: Callable[[Sequence[Text]], TokenizedTexts],
        stream: Stream,
        *,
        max_tokens: Callable[[], int],
        weigh: Callable[[Text], int],
        overlap: bool,
        observe: Callable[[ForwardStats], None] = lambda stats: None,
    ) -> None:
        """`max_tokens`: returns the current token budget of a forward pass; `weigh`: estimates the
        cost of tokenising a text, in characters; `overlap`: tokenise during a pass, which helps if
        the pass uses no CPU; `observe`: called from the encoding thread.
        """
        self._tokenize = tokenize
        self._stream = stream
        self._max_tokens = max_tokens
        self._weigh = weigh
        self._observe = observe
        self._ready: deque[_Item[Text]] = deque()
        self._encoding = False
        self._tokenized_all = not overlap
        tokenize_too = {"tokenize": self._tokenize_forever} if overlap else {}
        super().__init__("encoder", encode=self._encode_forever, **tokenize_too)

    def submit(
        self, texts: Sequence[Text], outputs: Collection[Output], *, first: bool = False
    ) -> Future[list[Result]]:
        """Return a future of one result per text, in order.

        Cancelling the future drops texts that are not being encoded yet. `first`: put the texts at
        the front of the queue.

        Raises:
            ModelError: the batcher is closed.
        """
        future: Future[list[Result]] = Future()
        job = _Job(frozenset(outputs), [None] * len(texts), len(texts))
        items = [
            _Item(job, row, text, future=future, first=first, weight=self._weigh(text))
            for row, text in enumerate(texts)
        ]
        self._arrive(items)
        if not texts:
            future.set_result([])
        return future

    def _tokenize_forever(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: (self._arrived and self._encoding) or self._closed)
                if not self._arrived:
                    self._tokenized_all = True
                    self._changed.notify_all()
                    return
                items = self._take_arrived()
            self._put(self._ready, self._tokenize_or_fail(items))

    def _take_arrived(self) -> list[_Item[Text]]:
        return self._take(self._arrived, _TOKENIZE_TEXTS, _TOKENIZE_WEIGHT)

    def _tokenize_or_fail(self, items: list[_Item[Text]]) -> list[_Item[Text]]:
        """Return the items that could be tokenised; answer the others with their error."""
        try:
            tokens = self._tokenize([item.text for item in items])
        except Exception as error:  # noqa: BLE001  a text may cause any error in a tokenizer
            if len(items) == 1:
                items[0].done(EncodeError(f"the text cannot be tokenised ({error!s:.120})."))
                return []
            return [found for item in items for found in self._tokenize_or_fail([item])]
        for item, ids, cut in zip(items, tokens.rows(), tokens.truncated, strict=True):
            item.ids, item.truncated, item.weight = ids, bool(cut), len(ids)
        return items

    def _encode_forever(self) -> None:
        while True:
            with self._changed:
                self._encoding = False
                self._changed.wait_for(
                    lambda: self._ready or self._arrived or (self._closed and self._tokenized_all)
                )
                if not self._ready and not self._arrived:
                    return
                self._encoding = True
                budget = self._max_tokens()
                urgent = bool(self._arrived) and self._arrived[0].first
                items = [] if urgent else self._take(self._ready, budget, budget)
                arrived = [] if items else self._take_arrived()  # no need to wake a thread
                self._changed.notify_all()
            if arrived:
                self._put(self._ready, self._tokenize_or_fail(arrived))
            if items:
                self._encode(items, budget)

    def _encode(self, items: list[_Item[Text]], budget: int) -> None:
        started = time.perf_counter()
        rows = [item.ids for item in items if item.ids is not None]
        tokens = TokenizedTexts.from_rows(rows, [item.truncated for item in items])
        outputs = frozenset().union(*(item.job.outputs for item in items))
        answered = 0
        try:
            for batch in self._stream(tokens.to_arrow(), outputs):
                self._answer(items[batch.start : batch.stop], batch)
                answered = batch.stop
        except Exception as error:  # noqa: BLE001  keep the thread alive and report the error to the callers
            for item in items[answered:]:
                item.done(failure(error))
        self._observe(
            ForwardStats(
                texts=len(items),
                tokens=len(tokens.values),
                budget=budget,
                seconds=time.perf_counter() - started,
                waited=started - min(item.job.arrived for item in items),
            )
        )

    def _answer(self, items: Sequence[_Item[Text]], batch: EncodedBatch) -> None:
        """Answer each item with its row of the columns or with an error."""
        lengths = [item.weight for item in items]
        vectors = rows_of(batch.columns, lengths, [item.truncated for item in items])
        for row, (item, found) in enumerate(zip(items, vectors, strict=True), batch.start):
            reason = batch.failures.get(row)
            item.done(EncodeError(f"the text cannot be encoded ({reason}).") if reason else found)
