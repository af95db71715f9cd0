"""Batch pairs of concurrent requests into shared forward passes of a reranker.

    batcher = PairBatcher(reranker)
    batcher.submit("what is ray", ["Ray is a distributed engine."]).result().scores

Each forward pass takes an equal share of tokens from every waiting request, so that a request with
a few passages does not wait behind one with a thousand. One thread tokenises and scores.
Independent of HTTP and event loops.
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

# Most characters of passages tokenised at once. The query is not counted: it is tokenised again for
# each group of passages.
_TOKENIZE_CHARACTERS = 1 << 16


@dataclass
class PairScores:
    """The result of one request: its N passages in order."""

    scores: np.ndarray
    """float32 [N]; NaN for a passage without a score."""
    truncated: np.ndarray
    """bool [N]: the passage or the query was truncated for any reason."""
    too_long: np.ndarray
    """bool [N]: the pair was truncated because it exceeds the reranker's `max_length`."""
    tokens: int = 0
    """Tokens of all pairs, special tokens included."""
    failures: dict[int, str] = field(default_factory=dict)
    """{passage: reason} for each passage without a score."""


@dataclass
class _Job(Waiting):
    """One request."""

    query: str
    passages: Sequence[str]
    max_passage_tokens: int | None
    keep_end: bool
    found: PairScores
    row: int = 0
    """First passage that has not been taken by a forward pass."""
    ready: PairTokens | None = None
    """Tokenised pairs that have not been taken yet."""

    def take(self, most: int, reranker: Reranker) -> PairTokens:
        """Remove and return the next pairs of up to `most` tokens, at least one pair."""
        if self.ready is None or not len(self.ready.truncated):
            self.ready = self._tokenize(reranker)
        n = next_stop(self.ready.offsets, 0, most)
        taken, self.ready = self.ready.part(0, n), self.ready.part(n, len(self.ready.truncated))
        self.row += n
        return taken

    def _tokenize(self, reranker: Reranker) -> PairTokens:
        """Tokenise the next passages, truncate them and record which ones were truncated."""
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
"""A request's share of a forward pass: the request, its first passage in the pass, the pairs."""


class PairBatcher(RequestQueue[_Job]):
    """A queue of requests in front of a reranker, processed by one thread; `close` ends it."""

    def __init__(
        self, reranker: Reranker, observe: Callable[[int, float], None] = lambda pairs, s: None
    ) -> None:
        """`reranker`: must give one score per pair; `observe`: called from the thread with the
        number of pairs and the seconds of each pass.
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
        """Return a future of the scores; cancelling it drops pairs that are not being scored yet.

        The future raises EncodeError if the pairs cannot be tokenised or the device fails.
        `max_passage_tokens`: longer passages are truncated, but not reported as `too_long`;
        `keep_end`: truncate a pair that is too long at its beginning instead of its end.

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
        """Take about `share` tokens from each request and about `budget` in total."""
        shares: list[_Share] = []
        while budget > 0 and (taken := self._take(self._arrived, count=1, weight=1)):
            [job] = taken
            start = job.row
            try:
                tokens = job.take(min(share, budget), self._reranker)
            except Exception as error:  # noqa: BLE001  a text may cause any error in a tokenizer
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
        except Exception as error:  # noqa: BLE001  keep the thread alive and report the error to the callers
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
