"""Ends a pipeline that waits for ever: stuck somewhere, or for machines that are gone.

    with watched(Watch(stuck_seconds=3600, fits=...)):
        for row in dataset.iter_batches(): ...

Ray repeats without end what dies, and waits without end for an actor that has lost its machine. It
is asked how things are in its own scheduling loop, whose errors reach whoever reads the dataset.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback

from actors.errors import EmbedError

_LOOK_SECONDS = 1.0
_PATIENCE_SECONDS = 60.0
"""How long actors may wait for a place while nothing else moves: machines come back, too."""


class PoolLostError(Exception):
    """Actors hold slices and have no machine to come back on: start a smaller pool."""


@dataclass
class Watch:
    """What moved last in a dataset's execution, and when."""

    stuck_seconds: float
    fits: Callable[[int], bool]
    """Whether the cluster as it is now holds so many actors."""
    at: Callable[[], str]
    """What the processes were at, for the message."""
    patience_seconds: float = field(default_factory=lambda: _PATIENCE_SECONDS)
    clock: Callable[[], float] = time.monotonic
    _looked: float = field(default=float("-inf"), init=False)
    _moved: float = field(default=0.0, init=False)
    _counts: list[tuple[int, int]] = field(default_factory=list, init=False)

    def look(self, operators: Mapping[Any, Any]) -> None:
        """Called again and again with Ray Data's operators, from the first to the last.

        Raises:
            EmbedError: nothing has moved for `stuck_seconds`.
            PoolLostError: only actors that have lost their place still hold slices.
        """
        now = self.clock()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        counts = [(op.metrics.num_outputs_taken, op.metrics.num_tasks_finished) for op in operators]
        if counts != self._counts:
            self._counts, self._moved = counts, now
            return
        idle = now - self._moved
        if idle < min(self.patience_seconds, self.stuck_seconds):
            return
        encoders = next(op for op in operators if op.get_autoscaling_actor_pools())
        reading = any(op.num_active_tasks() for op in operators if op is not encoders)
        if idle >= self.patience_seconds:
            self._check_pool(encoders.get_actor_info(), reading)
        if idle >= self.stuck_seconds:
            raise EmbedError(
                f"nothing moved for {idle / 60:.0f} minutes while {_stage(encoders, reading)}"
                f"{self.at()}.",
                "Finished slices are kept: run the same command again. Should a slice take longer "
                "than that, set ray.stuck_minutes or lower slice.documents.",
            )

    def _check_pool(self, pool: Any, reading: bool) -> None:
        lost = pool.restarting + pool.pending
        # Readers that wait for encoders to take their slices count as active.
        others_work = pool.running and (pool.active > pool.restarting or reading)
        if (
            lost
            and not others_work
            and not self.fits(pool.running + lost)
            and self.fits(max(pool.running, 1))
        ):
            raise PoolLostError


def _stage(encoders: Any, reading: bool) -> str:
    pool = encoders.get_actor_info()
    if encoders.num_active_tasks() and pool.running:
        return "encoding"
    if not pool.running:  # readers that wait for them count as active
        lost = pool.pending + pool.restarting
        return f"waiting for actors ({pool.running} run, {lost} do not start)"
    return "reading and tokenising" if reading else "waiting for Ray"


_active: list[Watch] = []


class _Callback(ExecutionCallback):
    """Made by Ray Data, which copies the context that names it to its workers: no state here."""

    def on_execution_step(self, executor: Any) -> None:
        """Called many times a second."""
        for watch in _active:
            watch.look(executor._topology)


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Datasets made in this context are watched when they are executed in it."""
    context = ray.data.DataContext.get_current()
    context.execution_no_progress_timeout_s = -1  # Ray's own, which knows no stage
    if _Callback not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(_Callback)
    _active.append(watch)
    try:
        yield
    finally:
        _active.remove(watch)
