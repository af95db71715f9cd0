"""A moment in which several threads encode counts once."""

from __future__ import annotations

import pytest

from pipelines.busy import BusyTime, Stretch, encoder_busy
from pipelines.records import Done, EncoderRecord, SliceTimes


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, *seconds):
        """An item each, so many seconds in the making."""
        for each in seconds:
            self.now += each
            yield each


def test_of_counts_what_the_making_of_items_takes():
    clock, stretch = Clock(), Stretch()
    for _ in BusyTime(clock).of(clock.takes(1, 2, 4), stretch):
        clock.now += 100
    assert (stretch.share, stretch.whole) == (7, 7)


def test_of_shares_what_two_do_at_once():
    clock = Clock()
    busy, inner, outer = BusyTime(clock), Stretch(), Stretch()

    def two_at_once():
        clock.now += 1
        list(busy.of(clock.takes(4), inner))
        clock.now += 1
        yield

    list(busy.of(two_at_once(), outer))
    assert (inner.share, inner.whole) == (2, 4)
    assert (outer.share, outer.whole) == (4, 6)


def test_of_ends_with_an_error():
    clock, busy, failed, after = Clock(), None, Stretch(), Stretch()
    busy = BusyTime(clock)

    def fails():
        clock.now += 3
        raise ValueError
        yield

    with pytest.raises(ValueError):
        list(busy.of(fails(), failed))
    list(busy.of(clock.takes(5), after))
    assert (failed.share, after.share) == (3, 5)


def done(worker: str, began: float, ended: float, encode: float) -> Done:
    encoder = EncoderRecord(
        space_fingerprint="0" * 32,
        dim=8,
        colbert_dim=None,
        max_length=128,
        pooling="cls",
        dtype="float32",
        device="cpu",
        worker=worker,
    )
    return Done(
        run_id="r",
        nonce="n",
        unit=0,
        first_document=0,
        documents=1,
        last=True,
        embedded=1,
        passages=1,
        tokens=1,
        truncated=0,
        rejects={},
        masked=[],
        part=None,
        ledger=None,
        reject_file=None,
        encoder=encoder,
        seconds=1.0,
        times=SliceTimes(began=began, ended=ended, encode=encode, write=0, upload=0),
    )


def test_encoder_busy_is_of_each_actors_own_time():
    records = [done("a:1", 100, 104, 3), done("a:1", 102, 108, 4), done("a:2", 500, 502, 1)]
    assert encoder_busy(records) == 0.8


def test_encoder_busy_without_records_that_tell_is_none():
    assert encoder_busy([]) is None
    assert encoder_busy([done("a:1", 0, 1, 1).model_copy(update={"times": None})]) is None
