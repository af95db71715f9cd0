"""How busy encoders were is told of the time in which they had slices."""

from __future__ import annotations

from pipelines.records import Done, EncoderRecord, SliceTimes
from pipelines.run_numbers import utilisation


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
    assert utilisation(records) == 0.8


def test_encoder_busy_without_records_that_tell_is_none():
    assert utilisation([]) is None
    assert utilisation([done("a:1", 0, 1, 1).model_copy(update={"times": None})]) is None
