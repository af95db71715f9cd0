"""How long an encoder had work, told from how long slices were in it.

Threads that encode at once take turns on one device. So a moment counts once, however many threads
are in the encoder, and each of them gets its share of it: what slices got adds up to the time in
which the encoder had something to do.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from pipelines.records import Done

T = TypeVar("T")


@dataclass
class Stretch:
    """What a thread spent in it so far."""

    share: float = 0.0
    """Seconds, shared with the threads that were in it at the same time."""
    whole: float = 0.0
    """Seconds by the clock."""


class BusyTime:
    """Of one thing that several threads use. Safe to share between them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._inside: list[Stretch] = []
        self._since = 0.0
        self._lock = threading.Lock()

    def of(self, items: Iterable[T], stretch: Stretch) -> Iterator[T]:
        """The items; what making each of them takes adds to `stretch`, not what is done with it."""
        source = iter(items)
        while True:
            with self._inside_of(stretch):
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item

    @contextmanager
    def _inside_of(self, stretch: Stretch) -> Iterator[None]:
        self._change(self._inside.append, stretch)
        try:
            yield
        finally:
            self._change(self._leave, stretch)

    def _leave(self, stretch: Stretch) -> None:
        at = next(i for i, each in enumerate(self._inside) if each is stretch)
        del self._inside[at]

    def _change(self, step: Callable[[Stretch], None], stretch: Stretch) -> None:
        with self._lock:
            now = self._clock()
            for each in self._inside:
                each.share += (now - self._since) / len(self._inside)
                each.whole += now - self._since
            self._since = now
            step(stretch)


def encoder_busy(done: Sequence[Done]) -> float | None:
    """Share of the time in which the encoders had work, None where no record tells.

    Of each actor from the beginning of its first slice to the end of its last one: loading the
    model, and waiting for other actors' last slices, do not count.
    """
    slices = defaultdict(list)
    for record in done:
        if record.times:
            slices[record.encoder.worker].append(record.times)
    spans = sum(max(t.ended for t in s) - min(t.began for t in s) for s in slices.values())
    busy = sum(times.encode for s in slices.values() for times in s)
    return round(busy / spans, 4) if spans > 0 else None
