"""What a run says of itself: its numbers, its lines, and its silence after the end."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from pipelines.index.records import Done, EncoderRecord
from pipelines.terminal import progress as module
from pipelines.terminal.cli import Log
from pipelines.terminal.progress import Progress
from pipelines.terminal.text import duration, line, summary


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def receipt(
    documents: int = 10, tokens: int = 500, *, worker: str = "host:1", **other: Any
) -> Done:
    encoder = EncoderRecord(
        space_fingerprint="s",
        dim=4,
        colbert_dim=None,
        max_length=8,
        pooling="cls",
        dtype="float32",
        device="cpu",
        worker=worker,
    )
    values: dict[str, Any] = {
        "run_id": "r",
        "nonce": "n",
        "unit": 0,
        "first_document": 0,
        "documents": documents,
        "last": False,
        "embedded": documents,
        "passages": 2 * documents,
        "tokens": tokens,
        "truncated": 0,
        "rejects": {},
        "masked": [],
        "part": None,
        "ledger": None,
        "reject_file": None,
        "encoder": encoder,
        "seconds": 1.0,
    }
    return Done(**values | other)


def quiet(**options: Any) -> Log:
    return Log(Console(file=io.StringIO(), width=200, **options))


def said(log: Log) -> str:
    file = log.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def begun(clock: Clock) -> Callable[..., Progress]:
    """A run of 100 documents whose two actors load their model."""

    def begin(documents: int | None = 100, kept: tuple[Done, ...] = ()) -> Progress:
        progress = Progress(quiet(), clock)
        progress.start("r", documents, kept)
        progress.stage("loading the model", actors=2)
        return progress

    return begin


def test_line_before_the_first_receipt_is_the_stage_and_its_seconds(
    begun: Callable[..., Progress], clock: Clock
) -> None:
    progress = begun()
    clock.now += 12
    assert line(progress.numbers()) == "loading the model, 12 s"


def test_line_after_a_receipt_holds_share_speed_time_left_rejects_and_actors(
    begun: Callable[..., Progress], clock: Clock
) -> None:
    progress = begun()
    clock.now += 5
    progress.update(receipt(10, rejects={"null_text": 2, "empty_text": 1}))
    assert line(progress.numbers()) == (
        "10 of 100 documents (10%), 45 s left, 100 tokens/s, 3 rejects, 20 passages, "
        "1 of 2 actors busy"
    )


def test_line_of_a_plan_of_unknown_size_has_no_share_and_no_time_left(
    begun: Callable[..., Progress], clock: Clock
) -> None:
    progress = begun(None)
    clock.now += 5
    progress.update(receipt(10))
    assert line(progress.numbers()).startswith("10 documents, 100 tokens/s")
    assert (progress.numbers()["share"], progress.numbers()["eta_seconds"]) == (None, None)


def test_line_of_a_plan_that_was_too_small_an_estimate_has_no_share(
    begun: Callable[..., Progress], clock: Clock
) -> None:
    progress = begun(5)
    clock.now += 5
    progress.update(receipt(10))
    assert progress.numbers()["share"] is None
    assert "left" not in line(progress.numbers())


def test_line_when_nothing_moves_says_for_how_long(
    begun: Callable[..., Progress], clock: Clock
) -> None:
    progress = begun()
    clock.now += 5
    progress.update(receipt())
    clock.now += 9
    assert "nothing new" not in line(progress.numbers())
    clock.now += 121
    assert line(progress.numbers()).endswith(", nothing new for 2 min 10 s")


def test_numbers_of_a_resumed_run_count_what_was_kept_and_its_speed_does_not(
    begun: Callable[..., Progress], clock: Clock
) -> None:
    kept = (receipt(30, 9000, rejects={"null_text": 1}), receipt(20), receipt(0, unreadable=True))
    progress = begun(100, kept)
    assert line(progress.numbers()).endswith("; 50 of 100 documents (50%) so far")
    clock.now += 10
    progress.update(receipt(10, 500, rejects={"null_text": 1}))
    numbers = progress.numbers()
    assert (numbers["documents"], numbers["passages"], numbers["tokens"]) == (60, 120, 10_000)
    assert (numbers["rejects"], numbers["share"]) == ({"null_text": 2}, 0.6)
    assert (numbers["tokens_per_second"], numbers["eta_seconds"]) == (50.0, 40)
    assert progress.kept() == {"slices": 3, "documents": 60}


def test_report_keeps_this_runs_work_apart_from_what_was_kept(
    begun: Callable[..., Progress], clock: Clock
) -> None:
    progress = begun(100, (receipt(30, 9000),))
    clock.now += 10
    progress.update(receipt(10, 500))
    report = progress.report()
    assert report["seconds"] == 10
    assert report["tokens_per_second"] == 50
    assert report["this_run"] == {"slices": 1, "documents": 10, "passages": 20, "tokens": 500}
    assert report["kept"] == {"slices": 1, "documents": 30, "passages": 60, "tokens": 9000}


def test_speed_is_the_recent_one_without_the_loading_of_the_model(
    begun: Callable[..., Progress], clock: Clock
) -> None:
    progress = begun(None)
    clock.now += 600
    for _ in range(30):
        progress.update(receipt(10, 500))
        clock.now += 1
    assert progress.numbers()["tokens_per_second"] == pytest.approx(500, rel=0.1)
    for _ in range(200):
        progress.update(receipt(10, 50))
        clock.now += 1
    assert progress.numbers()["tokens_per_second"] == pytest.approx(50, rel=0.1)


def test_actors_busy_are_those_that_finished_a_slice_lately(
    begun: Callable[..., Progress], clock: Clock
) -> None:
    progress = begun()
    progress.update(receipt(worker="host:1", seconds=100.0))
    progress.update(receipt(worker="host:2", seconds=1.0))
    assert progress.numbers()["actors_busy"] == 2
    clock.now += 61
    assert progress.numbers()["actors_busy"] == 1  # the other one's slices take longer
    clock.now += 240
    assert progress.numbers()["actors_busy"] == 0


def test_actors_busy_with_a_restarted_one_are_no_more_than_the_pool_has(
    begun: Callable[..., Progress],
) -> None:
    progress = begun()
    for worker in ("host:1", "host:2", "host:3"):
        progress.update(receipt(worker=worker))
    assert progress.numbers()["actors_busy"] == 2


def entered_for(progress: Progress, condition: Callable[[], bool]) -> None:
    """Enter the context until the condition holds."""
    with progress:
        deadline = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_log_without_receipts_says_a_line_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LOG_SECONDS", 0.01)
    progress = Progress(quiet())
    progress.stage("starting Ray")
    entered_for(progress, lambda: said(progress.log).count("\n") >= 3)
    assert set(said(progress.log).splitlines()) == {"starting Ray, 0 s"}


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_after_its_end_says_nothing_and_leaves_no_thread(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    for name in ("LOG_SECONDS", "LIVE_SECONDS"):
        monkeypatch.setattr(module, name, 0.001)
    progress = Progress(quiet(force_terminal=terminal))
    entered_for(progress, lambda: "starting" in said(progress.log))
    end = said(progress.log)
    time.sleep(0.05)
    assert said(progress.log) == end
    assert "progress" not in {thread.name for thread in threading.enumerate()}


def test_progress_on_a_terminal_is_one_line_that_is_gone_before_the_last_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LIVE_SECONDS", 0.01)
    log = quiet(force_terminal=True)
    progress = Progress(log)
    with progress:
        progress.start("r", 100, [])
        progress.stage("starting Ray")
        while said(log).count("starting Ray") < 3:
            time.sleep(0.01)
        progress.already_committed(1, "out")
    erased, _, last = said(log).rpartition("\x1b[2K")  # the terminal's "erase this line"
    assert last == "already committed: generation 1 of out\n"
    assert "run r: 100 documents\n" in erased


def test_log_as_json_is_an_object_a_line_with_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(module, "LOG_SECONDS", 0.01)
    log = Log(Console(file=io.StringIO(), force_terminal=True, width=40), "json")
    progress = Progress(log, clock)
    progress.start("r", 100, [receipt()])
    progress.stage("encoding", actors=2)
    progress.update(receipt(rejects={"null_text": 1}))
    entered_for(progress, lambda: "progress" in said(log))
    start, *others = [json.loads(text) for text in said(log).splitlines()]
    assert start["event"] == "start"
    assert start["documents_total"] == 100
    assert start["kept"] == {"slices": 1, "documents": 10, "passages": 20, "tokens": 500}
    for record in others:
        assert record.pop("time").endswith("+00:00")
        assert record == {"event": "progress"} | progress.numbers()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (725, "12 min 5 s"), (12_000, "3 h 20 min")],
)
def test_duration_has_at_most_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


REPORT: dict[str, Any] = {
    "generation": 3,
    "counts": {
        "documents": 1200,
        "passages": 3456,
        "tokens": 400_123,
        "truncated": 7,
        "rejects": {"null_text": 3, "encoder_error": 1},
    },
    "bytes": 45_200_000,
    "seconds": 34.2,
    "tokens_per_second": 9176.0,
    "this_run": {"slices": 9, "documents": 900, "passages": 3000, "tokens": 312_000},
    "kept": {"slices": 3, "documents": 300, "passages": 456, "tokens": 88_123},
}


def test_summary_says_what_was_made_where_it_is_and_what_was_kept() -> None:
    assert summary(REPORT, "out/my index").splitlines() == [
        "committed generation 3 of out/my index",
        "1,200 documents, 3,456 passages (7 truncated), 400,123 tokens, 45.2 MB, "
        "rejects: 3 null_text, 1 encoder_error",
        "this run: 312,000 tokens in 34 s, 9,176 tokens/s, start and commit included; "
        "88,123 tokens kept from earlier attempts",
        "look at it: python -m pipelines.show_index 'out/my index'",
    ]


def test_summary_of_a_run_in_one_go_speaks_of_no_other() -> None:
    report = REPORT | {"kept": dict.fromkeys(REPORT["kept"], 0)}
    assert "kept" not in summary(report, "out")
