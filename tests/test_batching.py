"""Requests that share forward passes: the right answers, to the right callers, in few passes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from typing import Any

import numpy as np
import pytest
import torch
from endpoint import OUTPUTS, tiny_encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.batching import Batcher, ForwardStats
from actors.encoded import EncodedBatch
from actors.errors import EncodeError, ModelError
from actors.network.packing import PackedBatch
from actors.text_vectors import TextVectors

BUDGET = 64


class Slow:
    """An encoder whose passes are seen, and wait for `gate`."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()
        self.passes: list[tuple[int, frozenset[str]]] = []
        self.poison: set[int] = set()

    def __call__(self, input_ids: Any, outputs: Any) -> Iterator[EncodedBatch]:
        self.begun.set()
        assert self.gate.wait(20)
        self.passes.append((len(input_ids), frozenset(outputs)))
        for row in input_ids.to_pylist():
            if self.poison & set(row):
                raise ValueError("poison")
        yield from tiny_encoder().stream(input_ids, outputs)


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def stats() -> list[ForwardStats]:
    return []


@pytest.fixture(params=[True, False], ids=["overlapping", "one thread"])
def batcher(
    request: pytest.FixtureRequest, slow: Slow, stats: list[ForwardStats]
) -> Iterator[Batcher[str]]:
    def tokenize(texts: Any) -> Any:
        if "untokenisable" in texts:
            raise TypeError("no")
        return tiny_encoder().passage_tokenizer.tokenize(texts)

    batcher: Batcher[str] = Batcher(
        tokenize,
        slow,
        max_tokens=lambda: BUDGET,
        weigh=len,
        overlap=request.param,
        observe=stats.append,
    )
    yield batcher
    slow.gate.set()
    batcher.close()


def assert_same(found: Any, text: str) -> None:
    alone = tiny_encoder().encode_passages([text])
    assert isinstance(found, TextVectors)
    np.testing.assert_allclose(found.dense, alone["dense"][0].as_py(), atol=2e-3)


def hold(batcher: Batcher[str], slow: Slow) -> Any:
    """One text is being encoded, for as long as the gate is shut."""
    slow.gate.clear()
    slow.begun.clear()
    future = batcher.submit(["first"], ("dense",))
    assert slow.begun.wait(20)
    return future


def wait_until_queued(batcher: Batcher[str], texts: int) -> None:
    """Tokenised, where a thread is there to do that."""
    queue = batcher._ready if len(batcher._threads) > 1 else batcher._arrived
    deadline = time.monotonic() + 20
    while len(queue) < texts:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_batcher_idle_encoder_takes_one_text_at_once(
    batcher: Batcher[str], slow: Slow, stats: list[ForwardStats]
) -> None:
    [found] = batcher.submit(["what is ray"], ("dense",)).result(20)
    assert_same(found, "what is ray")
    assert slow.passes == [(1, frozenset({"dense"}))]


def test_batcher_requests_that_arrive_during_a_pass_share_the_next(
    batcher: Batcher[str], slow: Slow, stats: list[ForwardStats]
) -> None:
    first = hold(batcher, slow)
    texts = [f"query {i}" for i in range(6)]
    futures = [batcher.submit([text], ("dense",)) for text in texts]
    wait_until_queued(batcher, 6)
    slow.gate.set()
    for text, future in zip(texts, futures, strict=True):
        assert_same(future.result(20)[0], text)
    first.result(20)
    assert [n for n, _ in slow.passes] == [1, 6]
    batcher.close()
    assert [s.texts for s in stats] == [1, 6]
    assert stats[1].budget == BUDGET
    assert stats[1].waited > 0


def test_batcher_request_above_the_budget_takes_several_passes(
    batcher: Batcher[str], slow: Slow
) -> None:
    first = hold(batcher, slow)
    texts = [f"a text of several words, number {i}" for i in range(30)]
    future = batcher.submit(texts, ("dense",))
    wait_until_queued(batcher, 30)
    slow.gate.set()
    for text, found in zip(texts, future.result(20), strict=True):
        assert_same(found, text)
    first.result(20)
    lengths = tiny_encoder().passage_tokenizer.tokenize(texts).lengths
    assert len(slow.passes) - 1 >= lengths.sum() / BUDGET
    assert max(n for n, _ in slow.passes) * lengths.min() <= BUDGET


def test_batcher_text_above_the_budget_goes_alone(batcher: Batcher[str], slow: Slow) -> None:
    long = "word " * 60  # 64 tokens are the model's, of a budget of 64 it leaves nothing
    found = batcher.submit([long, "short"], OUTPUTS).result(20)
    assert found[0].n_tokens == 64
    assert_same(found[1], "short")


def test_batcher_pass_computes_the_outputs_its_requests_ask_for(
    batcher: Batcher[str], slow: Slow
) -> None:
    first = hold(batcher, slow)
    one, other = batcher.submit(["a"], ("dense",)), batcher.submit(["b"], ("sparse",))
    wait_until_queued(batcher, 2)
    slow.gate.set()
    assert other.result(20)[0].sparse is not None
    assert one.result(20)[0].colbert is None
    first.result(20)
    assert slow.passes[1][1] == {"dense", "sparse"}


def test_batcher_text_that_cannot_be_tokenised_fails_alone(batcher: Batcher[str]) -> None:
    found = batcher.submit(["fine", "untokenisable", "as well"], ("dense",)).result(20)
    assert isinstance(found[1], EncodeError)
    assert_same(found[0], "fine")
    assert_same(found[2], "as well")


def test_batcher_text_whose_vectors_are_not_finite_fails_alone(
    batcher: Batcher[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = tiny_encoder()
    bad = encoder.passage_tokenizer.tokenize(["poison"]).values
    real = encoder._forward.backbone

    def backbone(packed: PackedBatch) -> torch.Tensor:
        hidden_TH = real(packed)
        start = 0
        for length in packed.lengths_N.tolist():
            if np.array_equal(packed.input_ids_T[start : start + length], bad):
                hidden_TH[start : start + length] = torch.nan
            start += length
        return hidden_TH

    monkeypatch.setattr(encoder._forward, "backbone", backbone)
    found = batcher.submit(["fine", "poison", "as well"], OUTPUTS).result(20)
    assert isinstance(found[1], EncodeError)
    assert "NaN" in found[1].message
    assert_same(found[0], "fine")
    assert_same(found[2], "as well")


def test_batcher_pass_that_dies_of_an_unknown_error_is_told_to_its_callers_and_others_live(
    batcher: Batcher[str], slow: Slow
) -> None:
    slow.poison = set(tiny_encoder().passage_tokenizer.tokenize(["zebra"]).values[1:-1].tolist())
    [found] = batcher.submit(["zebra"], ("dense",)).result(20)
    assert isinstance(found, EncodeError)
    assert "poison" in found.message
    slow.poison = set()
    assert_same(batcher.submit(["alive"], ("dense",)).result(20)[0], "alive")


def test_batcher_cancelled_request_is_not_encoded(batcher: Batcher[str], slow: Slow) -> None:
    first = hold(batcher, slow)
    gone, stays = batcher.submit(["gone"], ("dense",)), batcher.submit(["stays"], ("dense",))
    wait_until_queued(batcher, 2)
    assert gone.cancel()
    slow.gate.set()
    assert_same(stays.result(20)[0], "stays")
    first.result(20)
    assert [n for n, _ in slow.passes] == [1, 1]


def test_batcher_first_request_goes_before_those_that_wait(
    batcher: Batcher[str], slow: Slow
) -> None:
    order: list[str] = []
    held = hold(batcher, slow)
    late = [batcher.submit(["late " * 50], ("dense",)) for _ in range(6)]
    wait_until_queued(batcher, 6)
    if len(batcher._threads) == 1:  # some have tokens already, and wait for the next pass
        batcher._put(batcher._ready, batcher._tokenize_or_fail(batcher._take_arrived()))
    urgent = batcher.submit(["urgent " * 50], ("dense",), first=True)
    for i, future in enumerate(late):
        future.add_done_callback(lambda _, i=i: order.append(f"late {i}"))
    urgent.add_done_callback(lambda _: order.append("urgent"))
    if len(batcher._threads) > 1:
        wait_until_queued(batcher, 7)
    slow.gate.set()
    wait([held, *late, urgent], 20)
    assert order == ["urgent", *(f"late {i}" for i in range(6))]


def test_batcher_no_texts_are_answered_at_once(batcher: Batcher[str]) -> None:
    assert batcher.submit([], ("dense",)).result(0) == []


def test_batcher_close_finishes_what_it_took_and_takes_no_more(
    batcher: Batcher[str], slow: Slow
) -> None:
    first = hold(batcher, slow)
    futures = [batcher.submit([f"text {i}"], ("dense",)) for i in range(20)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    slow.gate.set()
    closing.join(20)
    assert not closing.is_alive()
    assert all(isinstance(f.result(0)[0], TextVectors) for f in (first, *futures))
    with pytest.raises(ModelError, match="shutting down"):
        batcher.submit(["late"], ("dense",))


@settings(max_examples=20, deadline=None)
@given(
    requests=st.lists(
        st.lists(st.text(st.characters(codec="utf-8"), max_size=80), min_size=1, max_size=6),
        min_size=1,
        max_size=8,
    ),
    overlap=st.booleans(),
)
def test_batcher_every_caller_gets_its_own_texts_in_order(
    requests: list[list[str]], overlap: bool
) -> None:
    encoder = tiny_encoder()
    batcher: Batcher[str] = Batcher(
        encoder.passage_tokenizer.tokenize,
        encoder.stream,
        max_tokens=lambda: 32,
        weigh=len,
        overlap=overlap,
    )
    try:
        futures = [batcher.submit(texts, OUTPUTS) for texts in requests]
        answers = [future.result(20) for future in futures]
    finally:
        batcher.close()
    for texts, found in zip(requests, answers, strict=True):
        alone = encoder.encode_passages(texts)
        for row, vectors in enumerate(found):
            assert isinstance(vectors, TextVectors)
            np.testing.assert_allclose(vectors.dense, alone["dense"][row].as_py(), atol=2e-3)
            assert vectors.sparse[0].tolist() == alone["sparse"][row].as_py()["indices"]
            assert len(vectors.colbert) == len(alone["colbert"][row])
