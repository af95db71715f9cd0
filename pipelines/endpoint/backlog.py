"""How much may wait in a replica, and when to come again where that is too much."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Gauge

from pipelines.endpoint.config import Limits
from pipelines.endpoint.errors import ApiError

# How fast the queue has been emptied lately, in items a second, is a moving mean over so long.
_RATE_SECONDS = 5.0


class Backlog:
    """What waits or is computed; of one event loop."""

    def __init__(self, what: str, limits: Limits, gauge: Gauge) -> None:
        """`what`: the items, in messages; `gauge`: always says how many there are."""
        self._what, self._limits, self._gauge = what, limits, gauge
        self.items = self._characters = 0
        self._rate = _Rate()

    @contextmanager
    def holding(self, items: int, characters: int) -> Iterator[None]:
        """Count them while they wait.

        Raises:
            ApiError: 429, too many would; an empty backlog takes any request.
        """
        self._refuse_if_full(items, characters)
        self._add(items, characters)
        try:
            yield
        finally:
            self._add(-items, -characters)
        self._rate.add(items)

    def _refuse_if_full(self, items: int, characters: int) -> None:
        limits = self._limits
        if self.items and (
            self.items + items > limits.max_queued_texts
            or self._characters + characters > limits.max_queued_characters
        ):
            raise ApiError(
                429,
                "queue_full",
                f"{self.items:,} {self._what} are waiting, at most {limits.max_queued_texts:,} may",
                retry_after=self.items / max(self._rate.per_second(), 1.0),
            )

    def _add(self, items: int, characters: int) -> None:
        self.items += items
        self._characters += characters
        self._gauge.set(self.items)


class _Rate:
    """Items a second, of the last seconds."""

    def __init__(self) -> None:
        self._items = 0.0
        self._since = time.monotonic()

    def add(self, items: int) -> None:
        self._decay()
        self._items += items

    def per_second(self) -> float:
        self._decay()
        return self._items / _RATE_SECONDS

    def _decay(self) -> None:
        now = time.monotonic()
        self._items *= 0.5 ** ((now - self._since) / _RATE_SECONDS)
        self._since = now
