"""Requests that share a reranker: the same scores as alone, and no waiting behind a long one."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from endpoint import tiny_reranker
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.errors import EncodeError, ModelError
from actors.pair_batching import PairBatcher
from actors.reranker import Reranker
from actors.tokens.pair_tokens import PairTokens


class Slow:
    """A reranker that waits for a gate, and remembers how many pairs each pass had."""

    def __init__(self, reranker: Reranker, max_batch_tokens: int) -> None:
        self._reranker = reranker
        self.max_batch_tokens = max_batch_tokens
        self.begun, self.gate = threading.Event(), threading.Event()
        self.passes: list[int] = []
        self.tokenize = reranker.tokenize

    def score_tokens(self, tokens: PairTokens) -> Any:
        self.begun.set()
        assert self.gate.wait(20)
        self.passes.append(len(tokens.truncated))
        return self._reranker.score_tokens(tokens)


words = st.text("abc déß你好 🙂\n", max_size=30)


@settings(max_examples=10, deadline=None)
@given(
    requests=st.lists(st.tuples(words, st.lists(words, max_size=9)), min_size=1, max_size=5),
    budget=st.integers(1, 200),
    piece=st.integers(1, 100),
)
def test_scores_of_shared_passes_are_those_of_each_request_alone(
    requests: list[tuple[str, list[str]]], budget: int, piece: int
) -> None:
    reranker: Any = Slow(tiny_reranker(), budget)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("actors.pair_batching._TOKENIZE_CHARACTERS", piece)
        batcher = PairBatcher(reranker)
        futures = [batcher.submit(query, passages) for query, passages in requests]
        reranker.gate.set()
        batcher.close()
    for (query, passages), future in zip(requests, futures, strict=True):
        found, pairs = future.result(0), [(query, passage) for passage in passages]
        expected = tiny_reranker().score(pairs)
        np.testing.assert_allclose(found.scores, expected, rtol=1e-5, atol=1e-5)
        assert found.tokens == len(tiny_reranker().tokenize(pairs).values)
        assert not found.failures


def test_short_request_does_not_wait_behind_a_long_one() -> None:
    reranker: Any = Slow(tiny_reranker(), 64)
    batcher = PairBatcher(reranker)
    long = batcher.submit("first", ["a b c"] * 200)
    assert reranker.begun.wait(20)
    short = batcher.submit("second", ["d"])
    passes_before: list[int] = []
    short.add_done_callback(lambda _: passes_before.append(len(reranker.passes)))
    reranker.gate.set()
    batcher.close()
    assert len(long.result(0).scores) == 200
    assert passes_before == [2]  # the one that it came in, and the next
    assert len(reranker.passes) > 10


def test_cancelled_request_is_scored_no_further() -> None:
    reranker: Any = Slow(tiny_reranker(), 64)
    batcher = PairBatcher(reranker)
    futures = [batcher.submit("query", ["a b c"] * 200) for _ in range(2)]
    assert reranker.begun.wait(20)
    assert all(future.cancel() for future in futures)
    reranker.gate.set()
    batcher.close()
    assert len(reranker.passes) == 1


def test_failing_device_fails_its_requests_and_no_later_one() -> None:
    reranker: Any = Slow(tiny_reranker(), 10_000)
    reranker.gate.set()
    real = reranker.score_tokens
    batcher = PairBatcher(reranker)
    reranker.score_tokens = lambda tokens: 1 / 0
    with pytest.raises(EncodeError, match="ZeroDivisionError"):
        batcher.submit("a", ["b", "c"]).result(20)
    reranker.score_tokens = real
    assert np.isfinite(batcher.submit("a", ["b"]).result(20).scores).all()
    reranker.tokenize = lambda pairs, keep_end: 1 / 0
    with pytest.raises(EncodeError, match="ZeroDivisionError"):
        batcher.submit("a", ["b", "c"]).result(20)
    batcher.close()
    with pytest.raises(ModelError, match="shutting down"):
        batcher.submit("a", ["b"])
