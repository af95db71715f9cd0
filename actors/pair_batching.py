"""Concurrent requests share a reranker: a query and its passages in, a future of scores out.

    batcher = PairBatcher(reranker)
    batcher.submit("what is ray", ["Ray is a distributed engine."]).result().scores

A forward pass takes an equal share of tokens from every request that waits, in turn, so that a few
passages do not wait behind a thousand. One thread tokenises and scores. Knows neither HTTP nor an
event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from actors.batching import RequestQueue, Waiting, answer, failure
from actors.network.micro_batches import next_stop
from actors.reranker import Reranker
from actors.tokens.pair_tokens import PairTokens

# Characters of passages that are tokenised in one go; the query's come on top, since it is
# tokenised again each time.
_TOKENIZE_CHARACTERS = 1 << 16


@dataclass
class PairScores:
    """What becomes of the N passages of one request, in order."""

    scores: np.ndarray
    """float32 [N]; NaN where there is none."""
    truncated: np.ndarray
    """bool [N]: cut, for whatever reason."""
    too_long: np.ndarray
    """bool [N]: cut because the pair was too long for the reranker."""
    tokens: int = 0
    """Of all pairs, special tokens included."""
    failures: dict[int, str] = field(default_factory=dict)
    """Why some have no score."""


@dataclass
class _Job(Waiting):
    """One request."""

    query: str
    passages: Sequence[str]
    max_passage_tokens: int | None
    keep_end: bool
    found: PairScores
    row: int = 0
    """Passages before it are scored, or in the pass."""
    ready: PairTokens | None = None
    """The pairs that come next, as far as they have tokens."""

    def take(self, most: int, reranker: Reranker) -> PairTokens:
        """The next pairs of up to `most` tokens, at least one."""
        if self.ready is None or not len(self.ready.truncated):
            self.ready = self._tokenize(reranker)
        n = next_stop(self.ready.offsets, 0, most)
        taken, self.ready = self.ready.part(0, n), self.ready.part(n, len(self.ready.truncated))
        self.row += n
        return taken

    def _tokenize(self, reranker: Reranker) -> PairTokens:
        """The next passages: as long as they may be, and which of them were cut for it."""
        ends = np.cumsum([0, *(len(passage) + 1 for passage in self.passages[self.row :])])
        stop = self.row + next_stop(ends, 0, _TOKENIZE_CHARACTERS + len(self.query))
        pairs = [(self.query, passage) for passage in self.passages[self.row : stop]]
        tokens = reranker.tokenize(pairs, keep_end=self.keep_end)
        cut_here = np.zeros(len(pairs), bool)
        if self.max_passage_tokens is not None:
            tokens, cut_here = tokens.cut_passages(self.max_passage_tokens)
        self.found.truncated[self.row : stop] = tokens.truncated | cut_here
        self.found.too_long[self.row : stop] = tokens.truncated & ~cut_here
        return tokens


_Share: TypeAlias = tuple[_Job, int, PairTokens]
"""What a forward pass takes of a request: its pairs from this passage on."""


class PairBatcher(RequestQueue[_Job]):
    """A thread between callers and a reranker; `close` ends it."""

    def __init__(
        self, reranker: Reranker, observe: Callable[[int, float], None] = lambda pairs, s: None
    ) -> None:
        """`reranker`: of one score a pair; `observe`: told the pairs and the seconds of each pass,
        from the thread.
        """
        self._reranker = reranker
        self._observe = observe
        super().__init__("reranker", rerank=self._run)

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
        found = PairScores(np.full(n, np.nan, np.float32), np.zeros(n, bool), np.zeros(n, bool))
        job = _Job(query, passages, max_passage_tokens, keep_end, found)
        if n:
            self._arrive([job])
        else:
            job.future.set_result(found)
        return job.future

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._arrived or self._closed)
                if not self._arrived:
                    return
                budget = self._reranker.max_batch_tokens
                share = max(budget // len(self._arrived), 1)
            if shares := self._shares(budget, share):
                self._score(shares)

    def _shares(self, budget: int, share: int) -> list[_Share]:
        """The next forward pass: of each request about `share` tokens, of all about `budget`."""
        shares: list[_Share] = []
        while budget > 0 and (taken := self._take(self._arrived, count=1, weight=1)):
            [job] = taken
            start = job.row
            try:
                tokens = job.take(min(share, budget), self._reranker)
            except Exception as error:  # noqa: BLE001  whatever a text can do to a tokenizer
                answer(job.future, failure(error))
                continue
            shares.append((job, start, tokens))
            budget -= len(tokens.values)
            if job.row < len(job.passages):
                self._put(self._arrived, [job])
        return shares

    def _score(self, shares: Sequence[_Share]) -> None:
        started = time.perf_counter()
        joined = PairTokens.joined([tokens for _, _, tokens in shares])
        try:
            scores_NL, failures = self._reranker.score_tokens(joined)
        except Exception as error:  # noqa: BLE001  the thread must live, callers must hear
            for job, _, _ in shares:
                answer(job.future, failure(error))
            return
        self._observe(len(joined.truncated), time.perf_counter() - started)
        at = 0
        for job, start, tokens in shares:
            n, found = len(tokens.truncated), job.found
            found.scores[start : start + n] = scores_NL[at : at + n, 0]
            found.tokens += len(tokens.values)
            found.failures |= {
                start + row - at: why for row, why in failures.items() if at <= row < at + n
            }
            if start + n == len(job.passages):
                answer(job.future, found)
            at += n
