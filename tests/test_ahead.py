"""One slice at a time has the encoder, ahead of its writer by so much and no more."""

from __future__ import annotations

import threading
import time

import numpy as np
import pyarrow as pa
import pytest

from actors.encoded import EncodedBatch
from pipelines.encode.overlap import EncoderQueue, Spent

BATCH_BYTES = 8_000


def batch(i):
    columns = pa.table({"dense": pa.array(np.zeros(BATCH_BYTES // 8))})
    return EncodedBatch(i, i + 1, columns, {})


def batches(n, log=None, name="", seconds=0.0):
    for i in range(n):
        time.sleep(seconds)
        if log is not None:
            log.append((name, i))
        yield batch(i)


def starts(found):
    return [each.start for each in found]


def eventually(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_run_gives_the_batches_in_order():
    assert starts(EncoderQueue().run(batches(20), Spent())) == [*range(20)]
    assert starts(EncoderQueue().run(batches(0), Spent())) == []


def test_run_is_ahead_by_so_many_bytes_and_no_more():
    log = []
    found = EncoderQueue(3 * BATCH_BYTES).run(batches(50, log), Spent())
    next(found)
    eventually(lambda: len(log) >= 5)  # one taken, three that fit, one that does not
    time.sleep(0.05)
    assert len(log) == 5
    assert starts(found) == [*range(1, 50)]


def test_run_of_batches_larger_than_the_bound_goes_on():
    assert starts(EncoderQueue(1).run(batches(5), Spent())) == [*range(5)]


def test_the_slice_that_came_first_has_the_encoder_to_its_end():
    turns, log = EncoderQueue(), []
    first = turns.run(batches(10, log, "first", 0.005), Spent())
    next(first)
    second = turns.run(batches(10, log, "second"), Spent())
    assert starts(second) == [*range(10)]
    assert log == [("first", i) for i in range(10)] + [("second", i) for i in range(10)]
    assert starts(first) == [*range(1, 10)]


def test_a_slice_that_is_far_ahead_lets_the_next_one_pass():
    turns, log = EncoderQueue(BATCH_BYTES), []
    first = turns.run(batches(10, log, "first"), Spent())
    next(first)  # and nobody writes more of it
    assert starts(turns.run(batches(4, log, "second"), Spent())) == [*range(4)]
    assert ("first", 9) not in log
    assert starts(first) == [*range(1, 10)]


def test_what_encoding_raises_is_raised_after_what_it_gave():
    def fails():
        yield batch(0)
        raise ValueError("poison")

    turns = EncoderQueue()
    found = turns.run(fails(), Spent())
    assert next(found).start == 0
    with pytest.raises(ValueError, match="poison"):
        next(found)
    assert starts(turns.run(batches(2), Spent())) == [0, 1]


@pytest.mark.parametrize("bound", [1, 1 << 30])
def test_a_reader_that_stops_ends_the_encoding(bound):
    turns, log = EncoderQueue(bound), []
    found = turns.run(batches(1000, log, seconds=0.001), Spent())
    next(found)
    found.close()
    n = len(log)
    assert n < 1000
    assert not [t for t in threading.enumerate() if t.name == "encode"]
    assert starts(turns.run(batches(2), Spent())) == [0, 1]
    assert len(log) == n


def test_many_slices_at_once_lose_nothing():
    turns, found = EncoderQueue(2 * BATCH_BYTES), {}

    def one(i):
        found[i] = starts(turns.run(batches(30 + i), Spent()))

    threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == {i: [*range(30 + i)] for i in range(8)}


def test_spent_tells_encoding_from_waiting():
    spent, began = Spent(), time.monotonic()
    for _ in EncoderQueue(1).run(batches(5, seconds=0.01), spent):
        time.sleep(0.03)
    written = 5 * 0.03
    assert spent.encoding >= 0.05
    assert 0 < spent.waiting <= time.monotonic() - began - written
