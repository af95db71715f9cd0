"""Ends a pipeline that would wait forever: it is stuck, or its machines are lost.

    with watched(Watch(stuck_seconds=3600, fits=...)):
        for row in dataset.iter_batches(): ...

Ray retries dying tasks without limit, and waits forever for an actor that has lost its machine. The
check runs in Ray Data's scheduling loop, whose errors reach the reader of the dataset.
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
"""How long actors may wait for a machine while nothing else moves; a lost machine may return."""


class PoolLostError(Exception):
    """Actors that hold slices cannot restart on any machine: a smaller pool is needed."""


@dataclass
class Watch:
    """Progress of a dataset's execution, and the time at which it last moved."""

    stuck_seconds: float
    fits: Callable[[int], bool]
    """Function that returns whether the cluster can now hold a number of actors."""
    at: Callable[[], str]
    """Function that returns, for the message, what the processes were working on."""
    patience_seconds: float = field(default_factory=lambda: _PATIENCE_SECONDS)
    clock: Callable[[], float] = time.monotonic
    _looked: float = field(default=float("-inf"), init=False)
    _moved: float = field(default=0.0, init=False)
    _counts: list[tuple[int, int]] = field(default_factory=list, init=False)

    def look(self, operators: Mapping[Any, Any]) -> None:
        """Check the progress of Ray Data's operators; called repeatedly during the execution.

        Raises:
            EmbedError: nothing has moved for `stuck_seconds`.
            PoolLostError: only actors that have lost their machine still hold slices.
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
                "Finished slices are kept: run the same command again. If a slice takes longer "
                "than that, raise ray.stuck_minutes or lower slice.documents.",
            )

    def _check_pool(self, pool: Any, reading: bool) -> None:
        lost = pool.restarting + pool.pending
        # Ray counts readers that wait for encoders to take their slices as active.
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
    if not pool.running:  # Ray counts readers that wait for actors as active
        lost = pool.pending + pool.restarting
        return f"waiting for actors ({pool.running} run, {lost} do not start)"
    return "reading and tokenising" if reading else "waiting for Ray"


_active: list[Watch] = []


class _Callback(ExecutionCallback):
    """Stateless: Ray Data creates it, and copies the context that names it to its workers."""

    def on_execution_step(self, executor: Any) -> None:
        """Check every active watch; Ray Data calls this many times a second."""
        for watch in _active:
            watch.look(executor._topology)


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Watch the datasets that are created and executed in this context."""
    context = ray.data.DataContext.get_current()
    context.execution_no_progress_timeout_s = -1  # turns off Ray's timeout, which names no stage
    if _Callback not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(_Callback)
    _active.append(watch)
    try:
        yield
    finally:
        _active.remove(watch)
