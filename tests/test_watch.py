"""When a pipeline counts as stuck, and when its pool is lost; the rest is in test_faults.py."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from ray.data._internal.actor_autoscaler.autoscaling_actor_pool import ActorPoolInfo
from ray.data._internal.execution.interfaces.op_runtime_metrics import OpRuntimeMetrics

from actors.errors import EmbedError
from pipelines.cluster.watch import PoolLostError, Watch

ALIVE = ActorPoolInfo(running=2, pending=0, restarting=0, active=2)


@dataclass(eq=False)
class Metrics:
    num_outputs_taken: int = 0
    num_tasks_finished: int = 0


@dataclass(eq=False)
class Operator:
    """What is asked of Ray's."""

    pool: ActorPoolInfo | None
    tasks: int
    metrics: Metrics = field(default_factory=Metrics)

    def num_active_tasks(self):
        return self.tasks

    def get_autoscaling_actor_pools(self):
        return [self.pool] if self.pool else []

    def get_actor_info(self):
        return self.pool or ActorPoolInfo(running=0, pending=0, restarting=0)


class Bench:
    """A watch whose clock is set by hand, over a reader and an encoder."""

    def __init__(self, *, pool=ALIVE, reading=1, encoding=2, room=2):
        self.now, self.room = 0.0, room
        self.reader, self.encoder = Operator(None, reading), Operator(pool, encoding)
        self.watch = Watch(
            stuck_seconds=600,
            fits=lambda actors: actors <= self.room,
            at=lambda: " (last begun: slice 7)",
            patience_seconds=60,
            clock=lambda: self.now,
        )
        self.look(0)

    def look(self, seconds):
        self.now += seconds
        self.watch.look({self.reader: None, self.encoder: None})


def test_fields_asked_for_are_rays():
    metrics = {*OpRuntimeMetrics.__annotations__}
    assert {"num_outputs_taken", "num_tasks_finished"} <= metrics


@pytest.mark.parametrize("operator", ["reader", "encoder"])
def test_watch_pipeline_that_moves_now_and_then_goes_on(operator):
    bench = Bench()
    for _ in range(5):
        bench.look(590)
        getattr(bench, operator).metrics.num_outputs_taken += 1
        bench.look(5)


@pytest.mark.parametrize(
    ("bench", "stage"),
    [
        ({}, "encoding"),
        ({"encoding": 0}, "reading and tokenising"),
        (
            {"pool": replace(ALIVE, running=0, restarting=2)},
            r"waiting for actors \(0 run, 2 do not start\)",
        ),
        (
            {"encoding": 0, "pool": ActorPoolInfo(running=0, pending=2, restarting=0)},
            r"waiting for actors \(0 run, 2 do not start\)",
        ),
    ],
    ids=str,
)
def test_watch_pipeline_in_which_nothing_moves_is_stopped_naming_the_stage(bench, stage):
    bench = Bench(**bench)
    bench.look(599)
    with pytest.raises(EmbedError, match=f"nothing moved for 10 minutes while {stage}") as caught:
        bench.look(1)
    assert "(last begun: slice 7)" in caught.value.message
    assert "ray.stuck_minutes" in caught.value.remedy


def test_watch_looks_once_a_second_at_most():
    bench = Bench()
    bench.look(599.9)
    bench.look(0.5)  # too soon to be asked again
    with pytest.raises(EmbedError):
        bench.look(0.5)


LOST = ActorPoolInfo(running=1, pending=0, restarting=1, active=1)
"""One of two actors is gone, and only it holds slices."""


def test_watch_lost_actor_that_alone_holds_slices_is_waited_for_a_while():
    bench = Bench(pool=LOST, reading=0, room=1)
    bench.look(59)
    with pytest.raises(PoolLostError):
        bench.look(1)


def test_watch_all_actors_lost_counts_though_readers_wait_for_them():
    bench = Bench(pool=ActorPoolInfo(running=0, pending=1, restarting=1, active=1), room=1)
    with pytest.raises(PoolLostError):
        bench.look(60)


@pytest.mark.parametrize(
    "bench",
    [
        {"room": 2},  # there is a place: it is coming back
        {"room": 0},  # no smaller pool fits either
        {"room": 1, "reading": 1},
        {"room": 1, "pool": replace(LOST, active=2)},  # the other one works
        {"room": 1, "pool": replace(ALIVE, active=0)},
    ],
    ids=str,
)
def test_watch_pool_that_may_still_go_on_is_left_alone(bench):
    bench = Bench(**({"pool": LOST, "reading": 0} | bench))
    for _ in range(9):
        bench.look(60)
