"""Requests that share forward passes: the right answers, to the right callers, in few passes."""

from __future__ import annotations

import threading
import time
from concurrent.futures import wait
from typing import Any

import numpy as np
import pytest
import torch
from endpoint import OUTPUTS, tiny_encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.batching import Batcher, ForwardStats
from actors.config import ModelConfig
from actors.encoder import load_encoder
from actors.errors import EncodeError, ModelError
from actors.text_vectors import TextVectors, columns_of, rows_of

BUDGET = 64
DENSE = ("dense",)


class Slow:
    """An encoder whose passes are seen, and wait for `gate`."""

    def __init__(self) -> None:
        self.gate, self.begun = threading.Event(), threading.Event()
        self.gate.set()
        self.passes: list[tuple[int, set[str]]] = []
        self.stats: list[ForwardStats] = []
        self.poison: set[int] = set()

    def __call__(self, input_ids, outputs):
        self.begun.set()
        assert self.gate.wait(20)
        self.passes.append((len(input_ids), set(outputs)))
        for row in input_ids.to_pylist():
            if self.poison & set(row):
                raise ValueError("poison")
        yield from tiny_encoder().stream(input_ids, outputs)

    @property
    def sizes(self) -> list[int]:
        return [texts for texts, _ in self.passes]


@pytest.fixture
def slow():
    return Slow()


def tokenize(texts):
    if "untokenisable" in texts:
        raise TypeError("no")
    return tiny_encoder().passage_tokenizer.tokenize(texts)


@pytest.fixture(params=[True, False], ids=["overlapping", "one thread"])
def batcher(request, slow):
    options = {"weigh": len, "overlap": request.param, "observe": slow.stats.append}
    batcher: Batcher[str] = Batcher(tokenize, slow, max_tokens=lambda: BUDGET, **options)
    yield batcher
    slow.gate.set()
    batcher.close()


def assert_same(found: Any, text: str) -> None:
    alone = tiny_encoder().encode_passages([text])
    assert isinstance(found, TextVectors)
    np.testing.assert_allclose(found.dense, alone["dense"][0].as_py(), atol=2e-3)


def hold(batcher, slow):
    """One text is being encoded, for as long as the gate is shut."""
    slow.gate.clear()
    slow.begun.clear()
    future = batcher.submit(["first"], DENSE)
    assert slow.begun.wait(20)
    return future


def wait_until_queued(batcher, texts):
    """Tokenised, where a thread is there to do that."""
    queue = batcher._ready if len(batcher._threads) > 1 else batcher._arrived
    deadline = time.monotonic() + 20
    while len(queue) < texts:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_batcher_idle_encoder_takes_one_text_at_once_and_no_texts_none(batcher, slow):
    [found] = batcher.submit(["what is ray"], DENSE).result(20)
    assert_same(found, "what is ray")
    assert batcher.submit([], DENSE).result(0) == []
    assert slow.passes == [(1, {"dense"})]


def test_batcher_requests_that_arrive_during_a_pass_share_the_next(batcher, slow):
    """With the outputs that any of them asks for; a cancelled one is not encoded."""
    first = hold(batcher, slow)
    texts = [f"query {i}" for i in range(6)]
    futures = [batcher.submit([text], DENSE) for text in texts]
    sparse, gone = batcher.submit(["b"], ("sparse",)), batcher.submit(["gone"], ("colbert",))
    wait_until_queued(batcher, 8)
    assert gone.cancel()
    slow.gate.set()
    for text, future in zip(texts, futures, strict=True):
        assert_same(future.result(20)[0], text)
        assert future.result(20)[0].colbert is None
    assert sparse.result(20)[0].sparse is not None
    first.result(20)
    assert slow.passes == [(1, {"dense"}), (7, {"dense", "sparse"})]
    batcher.close()
    assert [s.texts for s in slow.stats] == slow.sizes
    assert slow.stats[1].budget == BUDGET
    assert slow.stats[1].waited > 0


def test_batcher_request_above_the_budget_takes_several_passes(batcher, slow):
    first = hold(batcher, slow)
    texts = [f"a text of several words, number {i}" for i in range(30)]
    future = batcher.submit(texts, DENSE)
    wait_until_queued(batcher, 30)
    slow.gate.set()
    for text, found in zip(texts, future.result(20), strict=True):
        assert_same(found, text)
    first.result(20)
    lengths = tokenize(texts).lengths
    assert len(slow.passes) - 1 >= lengths.sum() / BUDGET
    assert max(slow.sizes) * lengths.min() <= BUDGET


def test_batcher_text_above_the_budget_goes_alone(batcher):
    long = "word " * 60  # 64 tokens are the model's, of a budget of 64 it leaves nothing
    found = batcher.submit([long, "short"], OUTPUTS).result(20)
    assert found[0].n_tokens == 64
    assert_same(found[1], "short")


def test_batcher_text_that_cannot_be_tokenised_or_has_no_finite_vectors_fails_alone(
    batcher, monkeypatch
):
    encoder = tiny_encoder()
    bad, real = tokenize(["poison"]).values, encoder._forward.backbone

    def backbone(packed):
        hidden_TH, start = real(packed), 0
        for length in packed.lengths_N.tolist():
            if np.array_equal(packed.input_ids_T[start : start + length], bad):
                hidden_TH[start : start + length] = torch.nan
            start += length
        return hidden_TH

    monkeypatch.setattr(encoder._forward, "backbone", backbone)
    texts = ["fine", "poison", "as well"]
    for texts[1], said in (("poison", "NaN"), ("untokenisable", "")):
        found = batcher.submit(texts, OUTPUTS).result(20)
        assert isinstance(found[1], EncodeError)
        assert said in found[1].message
        assert_same(found[0], texts[0])
        assert_same(found[2], texts[2])


def test_batcher_pass_that_dies_of_an_unknown_error_is_told_to_its_callers_and_others_live(
    batcher, slow
):
    slow.poison = set(tokenize(["zebra"]).values[1:-1].tolist())
    [found] = batcher.submit(["zebra"], DENSE).result(20)
    assert isinstance(found, EncodeError)
    assert "poison" in found.message
    slow.poison = set()
    assert_same(batcher.submit(["alive"], DENSE).result(20)[0], "alive")


def test_batcher_first_request_goes_before_those_that_wait(batcher, slow):
    order: list[str] = []
    held = hold(batcher, slow)
    late = [batcher.submit(["late " * 50], DENSE) for _ in range(6)]
    wait_until_queued(batcher, 6)
    if len(batcher._threads) == 1:  # some have tokens already, and wait for the next pass
        batcher._put(batcher._ready, batcher._tokenize_or_fail(batcher._take_arrived()))
    urgent = batcher.submit(["urgent " * 50], DENSE, first=True)
    for i, future in enumerate(late):
        future.add_done_callback(lambda _, i=i: order.append(f"late {i}"))
    urgent.add_done_callback(lambda _: order.append("urgent"))
    if len(batcher._threads) > 1:
        wait_until_queued(batcher, 7)
    slow.gate.set()
    wait([held, *late, urgent], 20)
    assert order == ["urgent", *(f"late {i}" for i in range(6))]


def test_batcher_close_finishes_what_it_took_and_takes_no_more(batcher, slow):
    first = hold(batcher, slow)
    futures = [batcher.submit([f"text {i}"], DENSE) for i in range(20)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    slow.gate.set()
    closing.join(20)
    assert not closing.is_alive()
    assert all(isinstance(f.result(0)[0], TextVectors) for f in (first, *futures))
    with pytest.raises(ModelError, match="shutting down"):
        batcher.submit(["late"], DENSE)


@settings(max_examples=20, deadline=None)
@given(
    requests=st.lists(
        st.lists(st.text(st.characters(codec="utf-8"), max_size=80), min_size=1, max_size=6),
        min_size=1,
        max_size=8,
    ),
    overlap=st.booleans(),
)
def test_batcher_every_caller_gets_its_own_texts_in_order(requests, overlap):
    encoder = tiny_encoder()
    options = {"max_tokens": lambda: 32, "weigh": len, "overlap": overlap}
    batcher: Batcher[str] = Batcher(tokenize, encoder.stream, **options)
    try:
        futures = [batcher.submit(texts, OUTPUTS) for texts in requests]
        answers = [future.result(20) for future in futures]
    finally:
        batcher.close()
    for texts, found in zip(requests, answers, strict=True):
        alone = encoder.encode_passages(texts).to_pylist()
        for vectors, expected in zip(found, alone, strict=True):
            np.testing.assert_allclose(vectors.dense, expected["dense"], atol=2e-3)
            assert vectors.sparse[0].tolist() == expected["sparse"]["indices"]
            assert len(vectors.colbert) == len(expected["colbert"])


# --- one text's vectors, out of an encoder's columns and back -------------------------------------


TEXTS = ["what is ray", "", "a much longer text about rivers, bridges and rivers again"]


def encoded(encoder):
    tokens, columns = encoder.passage_tokenizer.tokenize(TEXTS), encoder.encode_passages(TEXTS)
    return rows_of(columns, tokens.lengths, tokens.truncated), columns


def test_rows_hold_what_was_computed_and_columns_of_them_are_the_encoders():
    rows, columns = encoded(tiny_encoder())
    assert columns_of(rows, OUTPUTS).equals(columns)
    assert columns_of(rows[1:], ("sparse",)).equals(columns.select(["sparse"]).slice(1))
    first = rows[0]
    assert not first.truncated
    assert first.colbert.shape[0] == first.n_tokens - 1
    assert first.has(OUTPUTS)
    assert not TextVectors(n_tokens=1, truncated=False, dense=first.dense).has(("sparse",))
    assert first.nbytes == sum(a.nbytes for a in (first.dense, first.colbert, *first.sparse))


def test_copy_of_a_text_shares_no_memory_with_its_batch():
    row = encoded(tiny_encoder())[0][2]
    copy = row.copy()
    for mine, theirs in zip((copy.dense, copy.colbert), (row.dense, row.colbert), strict=True):
        assert not np.shares_memory(mine, theirs)
        np.testing.assert_array_equal(mine, theirs)
    for mine, theirs in zip(copy.sparse, row.sparse, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("normalize", [True, False])
def test_truncate_gives_what_the_encoder_gives_with_truncate_dim(normalize):
    config = {"name": "builtin:tiny-m3", "outputs": ("dense", "colbert"), "dtype": "float32"}
    config |= {"normalize": normalize, "vector_dtype": "float32"}
    short = load_encoder(ModelConfig(**config, truncate_dim=8)).encode_passages(TEXTS)
    for row, text in enumerate(encoded(load_encoder(ModelConfig(**config)))[0]):
        cut = text.truncate(8, normalize=normalize)
        np.testing.assert_allclose(cut.dense, short["dense"][row].as_py(), atol=1e-6)
        expected = np.array(short["colbert"][row].as_py()).reshape(-1, 8)
        np.testing.assert_allclose(cut.colbert, expected, atol=1e-6)
