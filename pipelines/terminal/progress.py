"""Progress of a run: one live line on a terminal, otherwise a log line every 10 seconds."""

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

_WINDOW_SECONDS, _WINDOW_SLICES = 60.0, 20  # speed is measured over the longer of the two
_SETTLED_SECONDS = 10.0  # a shorter window is too noisy: slices finish in bursts
_BUSY_SECONDS, _BUSY_SLICES = 60.0, 3
_TELLING_SLICES = 4  # fewest slices from which a speed is remembered


_NOTHING = {"slices": 0, "documents": 0, "passages": 0, "tokens": 0}
"""The numbers that are summed over slices, all zero; "tokens" counts encoded tokens."""


class Progress:
    """Sums up done records and, while entered as a context, reports the state of the run."""

    def __init__(self, log: Log, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the run's wall time; `clock` returns monotonic seconds."""
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
        self._recent: deque[tuple[float, int, int]] = deque()  # time, documents, tokens
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
        """Stop reporting, and clear the live line."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        if self._live:
            self._live.stop()
        self._thread = self._live = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Suspend reporting while the terminal is used for a question."""
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
        """Name the stage of the run before slices finish; `actors`: the size of the pool."""
        with self._lock:
            self._stage, self._stage_began = name, self._clock()
            self._actors = self._actors if actors is None else actors

    def start(
        self, run_id: str, documents: int | None, kept: Sequence[Done], *, about: bool = False
    ) -> None:
        """Log the start. `documents`: total of the plan if known, an estimate if `about`. `kept`:
        the done records of earlier attempts.
        """
        with self._lock:
            self._total, self._about = documents, about
            for done in kept:
                if not done.unreadable:  # an unreadable unit is tried again
                    self._add(self._kept, done)
        facts = {"run_id": run_id, "documents_total": documents, "kept": dict(self._kept)}
        before = (
            f", {self._kept['documents']:,} of them already done" if self._kept["slices"] else ""
        )
        known = (
            "documents are counted while they are read"
            if documents is None
            else f"{'~' * about}{documents:,} documents"
        )
        self.log.say("start", f"run {run_id}: {known}{before}", **facts)

    def update(self, done: Done) -> None:
        """Count one slice that this run has finished."""
        with self._lock:
            now = self._clock()
            if not self._recent:
                self._recent.append((self._stage_began, 0, 0))  # speed is measured from here
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
            recent.popleft()  # the time for loading the model no longer counts
        while len(recent) > most and now - recent[0][0] > _WINDOW_SECONDS:
            recent.popleft()

    def committed(self, report: Mapping[str, Any], uri: str) -> None:
        """Log the end of a run with the summary of its report.json."""
        self.stop()
        self.log.say("done", summary(report, uri), index=uri, already_committed=False, **report)

    def already_committed(self, generation: int, uri: str) -> None:
        """Log the end of a run whose index was committed before."""
        self.stop()
        text = f"already committed: generation {generation} of {uri}"
        self.log.say("done", text, index=uri, already_committed=True, generation=generation)

    def nothing_to_do(self, generation: int, uri: str) -> None:
        """Log the end of re-indexing over an unchanged source."""
        self.stop()
        text = f"nothing to do: generation {generation} of {uri} matches its source"
        self.log.say("done", text, index=uri, already_committed=True, generation=generation)

    def actor_speed(self) -> tuple[float, str] | None:
        """Return tokens per second of one actor and its device; None if too little was encoded."""
        if self._new["slices"] < _TELLING_SLICES or not self._device or not self._actors:
            return None
        return self.numbers()["tokens_per_second"] / self._actors, self._device

    def kept(self) -> dict[str, int]:
        """Return the numbers of finished slices and documents, which the next attempt skips."""
        return {name: self._kept[name] + self._new[name] for name in ("slices", "documents")}

    def report(self) -> dict[str, Any]:
        """Return the wall time, and the work of this attempt and of earlier ones separately."""
        seconds = self._clock() - self._began
        return {
            "seconds": round(seconds, 3),
            "tokens_per_second": round(self._new["tokens"] / max(seconds, 1e-9), 1),
            "this_run": dict(self._new),
            "kept": dict(self._kept),
        }

    def numbers(self) -> dict[str, Any]:
        """Return the state of the run, kept slices included; the speed is that of this attempt.

        An actor counts in `actors_busy` if it finished a slice within the last minute, or within
        three times the duration of its last slice if that is longer. The driver sees only done
        records, so an actor counts as busy for a while after it has died.
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
        """Return documents and tokens per second, from the second entry of `_recent` on."""
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
