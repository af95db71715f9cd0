"""Concurrent requests share a reranker: a query and its passages in, a future of scores out.

    batcher = PairBatcher(reranker)
    batcher.submit("what is ray", ["Ray is a distributed engine."]).result().scores

A forward pass takes an equal share of tokens from every request that waits, in turn, so that a few
passages do not wait behind a thousand. One thread tokenises and scores. Knows neither HTTP nor an
event loop.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from actors.errors import EncodeError, ModelError
from actors.micro_batches import next_stop
from actors.rerank.pair_tokens import PairTokens
from actors.reranker import Reranker

# Characters of passages that are tokenised in one go; the query's come on top, since it is
# tokenised again each time.
_TOKENIZE_CHARACTERS = 1 << 16


@dataclass(frozen=True)
class PairScores:
    """What becomes of the N passages of one request, in order."""

    scores: np.ndarray
    """float32 [N]; NaN where there is none."""
    truncated: np.ndarray
    """bool [N]: cut, for whatever reason."""
    too_long: np.ndarray
    """bool [N]: cut because the pair was too long for the reranker."""
    tokens: int
    """Of all pairs, special tokens included."""
    failures: dict[int, str]
    """Why some have no score."""


@dataclass
class _Job:
    """One request."""

    query: str
    passages: Sequence[str]
    max_passage_tokens: int | None
    keep_end: bool
    scores: np.ndarray
    truncated: np.ndarray
    too_long: np.ndarray
    tokens: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    future: Future[PairScores] = field(default_factory=Future)
    row: int = 0
    """Passages before it are scored, or in the pass."""
    piece: PairTokens | None = None
    piece_start: int = 0
    """Of the passages that have tokens now."""

    def take(self, most: int, reranker: Reranker) -> PairTokens:
        """The next pairs of up to `most` tokens, at least one."""
        if self.piece is None or self.row == self.piece_start + len(self.piece.truncated):
            self.piece_start = self.row
            texts = self.passages[self.row : self._piece_stop()]
            pairs = [(self.query, text) for text in texts]
            self.piece = self._cut(reranker.tokenize(pairs, keep_end=self.keep_end))
        start = self.row - self.piece_start
        stop = next_stop(self.piece.offsets, start, most)
        self.row += stop - start
        return self.piece.part(start, stop)

    def is_taken(self) -> bool:
        return self.row == len(self.passages)

    def done(self, start: int, scores: np.ndarray, tokens: PairTokens) -> None:
        stop = start + len(scores)
        self.scores[start:stop] = scores
        self.tokens += len(tokens.values)
        if stop == len(self.passages):
            found = PairScores(
                self.scores, self.truncated, self.too_long, self.tokens, self.failures
            )
            with suppress(InvalidStateError):  # cancelled: nobody waits
                self.future.set_result(found)

    def fail(self, error: Exception) -> None:
        with suppress(InvalidStateError):
            self.future.set_exception(EncodeError(f"{type(error).__name__}: {error!s:.200}"))

    def _cut(self, tokens: PairTokens) -> PairTokens:
        """As long as they may be, and which of them were cut for it."""
        rows = slice(self.row, self.row + len(tokens.truncated))
        cut_here = np.zeros(len(tokens.truncated), bool)
        if self.max_passage_tokens is not None:
            tokens, cut_here = tokens.cut_passages(self.max_passage_tokens)
        self.truncated[rows] = tokens.truncated | cut_here
        self.too_long[rows] = tokens.truncated & ~cut_here
        return tokens

    def _piece_stop(self) -> int:
        left = _TOKENIZE_CHARACTERS + len(self.query)
        stop = self.row
        while stop < len(self.passages) and left > 0:
            left -= len(self.passages[stop]) + 1
            stop += 1
        return stop


@dataclass(frozen=True)
class _Part:
    """What a forward pass takes of a request."""

    job: _Job
    start: int
    tokens: PairTokens


class PairBatcher:
    """A thread between callers and a reranker; `close` ends it."""

    def __init__(
        self, reranker: Reranker, observe: Callable[[int, float], None] = lambda pairs, s: None
    ) -> None:
        """`reranker`: of one score a pair; `observe`: told the pairs and the seconds of each pass,
        from the thread.
        """
        self._reranker = reranker
        self._observe = observe
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="rerank", daemon=True)
        self._thread.start()

    def submit(
        self,
        query: str,
        passages: Sequence[str],
        *,
        max_passage_tokens: int | None = None,
        keep_end: bool = False,
    ) -> Future[PairScores]:
        """A future of the scores; cancelling it drops what has not begun. It raises EncodeError
        where the pairs cannot be tokenised, or the device fails.

        `max_passage_tokens`: longer passages are cut, which is not too long for the reranker;
        `keep_end`: what is too long for it loses its beginning.

        Raises:
            ModelError: the batcher is closed.
        """
        n = len(passages)
        scores, cut, too_long = np.full(n, np.nan, np.float32), np.zeros(n, bool), np.zeros(n, bool)
        job = _Job(query, passages, max_passage_tokens, keep_end, scores, cut, too_long)
        if not n:
            job.future.set_result(PairScores(scores, cut, too_long, 0, {}))
            return job.future
        with self._changed:
            if self._closed:
                raise ModelError("the reranker is shutting down.", "Send the request again.")
            self._jobs.append(job)
            self._changed.notify_all()
        return job.future

    def close(self) -> None:
        """Finish what was submitted, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if not self._jobs:
                    return
                budget = self._reranker.max_batch_tokens
                share = max(budget // len(self._jobs), 1)
            if parts := self._parts(budget, share):
                self._score(parts)

    def _parts(self, budget: int, share: int) -> list[_Part]:
        """The next forward pass: of each request about `share` tokens, of all about `budget`."""
        parts: list[_Part] = []
        while budget > 0 and (job := self._next_job()):
            start = job.row
            try:
                tokens = job.take(min(share, budget), self._reranker)
            except Exception as error:  # noqa: BLE001  whatever a text can do to a tokenizer
                job.fail(error)
                continue
            parts.append(_Part(job, start, tokens))
            budget -= len(tokens.values)
            if not job.is_taken():
                with self._changed:
                    self._jobs.append(job)
        return parts

    def _next_job(self) -> _Job | None:
        with self._changed:
            while self._jobs:
                job = self._jobs.popleft()
                if not job.future.cancelled() and not job.future.done():
                    return job
        return None

    def _score(self, parts: Sequence[_Part]) -> None:
        started = time.perf_counter()
        tokens = PairTokens.joined([part.tokens for part in parts])
        try:
            scores_NL, failures = self._reranker.score_tokens(tokens)
        except Exception as error:  # noqa: BLE001  the thread must live, callers must hear
            for part in parts:
                part.job.fail(error)
            return
        self._observe(len(tokens.truncated), time.perf_counter() - started)
        at = 0
        for part in parts:
            n = len(part.tokens.truncated)
            own = {row - at: reason for row, reason in failures.items() if at <= row < at + n}
            part.job.failures |= {part.start + row: reason for row, reason in own.items()}
            part.job.done(part.start, scores_NL[at : at + n, 0], part.tokens)
            at += n
