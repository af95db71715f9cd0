"""What a running pipeline says of itself: one live line on a terminal, else a line now and then."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.live import Live
from rich.text import Text

from pipelines.index.records import Done
from pipelines.terminal.cli import Log
from pipelines.terminal.text import line, summary

LIVE_SECONDS = 1.0
LOG_SECONDS = 10.0

_WINDOW_SECONDS, _WINDOW_SLICES = 60.0, 20  # speed is that of the longer of the two
_SETTLED_SECONDS = 10.0  # a shorter window says nothing: slices end in bursts
_BUSY_SECONDS, _BUSY_SLICES = 60.0, 3
_TELLING_SLICES = 4  # a speed worth keeping is that of so many


_NOTHING = {"slices": 0, "documents": 0, "passages": 0, "tokens": 0}
"""What is summed over slices; tokens are those that were encoded."""


class Progress:
    """Adds up receipts, and says where the run is for as long as it is entered as a context."""

    def __init__(self, log: Log, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: monotonic seconds; the run's wall time is counted from here."""
        self.log = log
        self._clock = clock
        self._began = self._stage_began = self._moved = clock()
        self._stage: str | None = "starting"
        self._total: int | None = None
        self._about = False
        self._actors = 0
        self._device = ""
        self._kept, self._new = Counter(_NOTHING), Counter(_NOTHING)
        self._rejects: Counter[str] = Counter()
        self._recent: deque[tuple[float, int, int]] = deque()  # when, documents, tokens
        self._busy_until: dict[str, float] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._live: Live | None = None
        self._paused = False

    def __enter__(self) -> Progress:
        console = self.log.console
        if console.is_interactive and self.log.format == "text":
            self._live = Live(
                console=console,
                get_renderable=self._one_line,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
            )
            self._live.start(refresh=True)
        self._thread = threading.Thread(target=self._tick, name="progress", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Say no more of it, and clear the live line."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        if self._live:
            self._live.stop()
        self._thread = self._live = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The terminal is someone else's meanwhile: to put a question there."""
        self._paused = True
        if self._live:
            self._live.stop()
        try:
            yield
        finally:
            if self._live:
                self._live.start(refresh=True)
            self._paused = False

    def stage(self, name: str, *, actors: int | None = None) -> None:
        """What the run does while no slice can be finished; `actors`: the size of the pool."""
        with self._lock:
            self._stage, self._stage_began = name, self._clock()
            self._actors = self._actors if actors is None else actors

    def start(
        self, run_id: str, documents: int | None, kept: Sequence[Done], *, about: bool = False
    ) -> None:
        """`documents`: of the whole plan, where known, or `about` so many; `kept`: what an earlier
        try has done.
        """
        with self._lock:
            self._total, self._about = documents, about
            for done in kept:
                if not done.unreadable:  # these are tried again
                    self._add(self._kept, done)
        facts = {"run_id": run_id, "documents_total": documents, "kept": dict(self._kept)}
        before = (
            f", {self._kept['documents']:,} of them done before" if self._kept["slices"] else ""
        )
        known = "documents" if documents is None else f"{'~' * about}{documents:,} documents"
        self.log.say("start", f"run {run_id}: {known}{before}", **facts)

    def update(self, done: Done) -> None:
        """Count one slice that this run has finished."""
        with self._lock:
            now = self._clock()
            if not self._recent:
                self._recent.append((self._stage_began, 0, 0))  # speed counts from there
            self._stage, self._moved = None, now
            self._add(self._new, done)
            self._recent.append((now, done.documents, done.encoded_tokens))
            self._forget(now)
            patience = max(_BUSY_SECONDS, _BUSY_SLICES * done.seconds)
            self._device = done.encoder.device
            self._busy_until[done.encoder.worker] = now + patience

    def _add(self, sums: Counter[str], done: Done) -> None:
        sums.update(
            slices=1,
            documents=done.documents,
            passages=done.passages,
            tokens=done.encoded_tokens,
        )
        self._rejects.update(done.rejects)

    def _forget(self, now: float) -> None:
        recent, most = self._recent, max(_WINDOW_SLICES, 4 * self._actors)
        if not recent[0][1] and now - recent[1][0] >= _SETTLED_SECONDS:
            recent.popleft()  # loading the model no longer counts
        while len(recent) > most and now - recent[0][0] > _WINDOW_SECONDS:
            recent.popleft()

    def committed(self, report: Mapping[str, Any], uri: str) -> None:
        """The end of a run: its summary, from its report.json."""
        self.stop()
        self.log.say("done", summary(report, uri), index=uri, already_committed=False, **report)

    def already_committed(self, generation: int, uri: str) -> None:
        """The end where there was nothing to do."""
        self.stop()
        text = f"already committed: generation {generation} of {uri}"
        self.log.say("done", text, index=uri, already_committed=True, generation=generation)

    def nothing_to_do(self, generation: int, uri: str) -> None:
        """The end of re-indexing over a source that did not change."""
        self.stop()
        text = f"nothing to do: generation {generation} of {uri} is what its source is"
        self.log.say("done", text, index=uri, already_committed=True, generation=generation)

    def actor_speed(self) -> tuple[float, str] | None:
        """Tokens a second of one actor, and its device; None where too little was encoded."""
        if self._new["slices"] < _TELLING_SLICES or not self._device or not self._actors:
            return None
        return self.numbers()["tokens_per_second"] / self._actors, self._device

    def kept(self) -> dict[str, int]:
        """Slices and documents known to be finished: what the next try need not do."""
        return {name: self._kept[name] + self._new[name] for name in ("slices", "documents")}

    def report(self) -> dict[str, Any]:
        """What this run did itself, apart from what it kept; wall seconds since it began."""
        seconds = self._clock() - self._began
        return {
            "seconds": round(seconds, 3),
            "tokens_per_second": round(self._new["tokens"] / max(seconds, 1e-9), 1),
            "this_run": dict(self._new),
            "kept": dict(self._kept),
        }

    def numbers(self) -> dict[str, Any]:
        """Where the run is, kept slices included; speed and time left are this run's.

        `actors_busy` are those that finished a slice within the last minute, or, where slices take
        long, within three times as long as their last one took: receipts are all that the driver
        sees, so an actor counts as busy for a while after it has died.
        """
        with self._lock:
            now = self._clock()
            done = self._kept + self._new
            documents = done["documents"]
            rate, speed = self._speed(now)
            known = self._total is not None and self._total >= documents
            left = (self._total or 0) - documents
            return {
                "stage": self._stage or "encoding",
                "stage_seconds": round(now - self._stage_began, 1),
                "seconds": round(now - self._began, 1),
                "idle_seconds": round(now - self._moved, 1),
                "documents": documents,
                "documents_total": self._total,
                "documents_total_estimated": self._about,
                "share": round(documents / max(self._total or 0, 1), 4) if known else None,
                "eta_seconds": round(left / rate) if known and rate else None,
                "passages": done["passages"],
                "tokens": done["tokens"],
                "tokens_per_second": round(speed, 1),
                "rejects": dict(self._rejects),
                "actors": self._actors,
                "actors_busy": min(sum(t > now for t in self._busy_until.values()), self._actors),
            }

    def _speed(self, now: float) -> tuple[float, float]:
        """Documents and tokens a second, of the slices after the first of `_recent`."""
        if not self._recent:
            return 0.0, 0.0
        (since, *_), *slices = self._recent
        seconds = max(now - since, 1e-9)
        return sum(s[1] for s in slices) / seconds, sum(s[2] for s in slices) / seconds

    def _tick(self) -> None:
        while not self._stop.wait(LIVE_SECONDS if self._live else LOG_SECONDS):
            if self._paused:
                continue
            if self._live:
                self._live.refresh()
            else:
                numbers = self.numbers()
                self.log.say("progress", line(numbers), **numbers)

    def _one_line(self) -> Text:
        return Text(line(self.numbers()), no_wrap=True, overflow="ellipsis")
