"""One writer for each index: who gets the lease, when it is taken over, and how it is lost."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from s3_server import s3_bucket, s3_endpoint  # noqa: F401

from actors.errors import IndexStateError, LeaseHeldError, StorageError
from pipelines.index.lease import Owner, hold_lease
from pipelines.store import Store, open_store

ROOT = Path(__file__).parents[1]

needs_proc = pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="needs Linux")


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "index"))


class Observer:
    """A clock that only sleeping moves; `events` run once their time has come."""

    def __init__(self, **events: Callable[[], object]) -> None:
        self.now = 1000.0
        self.events = {1000.0 + float(at.removeprefix("at_")): do for at, do in events.items()}

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds
        for at in [at for at in self.events if at <= self.now]:
            self.events.pop(at)()

    def take(self, store: Store, run_id: str = "observer"):
        return hold_lease(store, run_id, clock=self.clock, sleep=self.sleep)

    def takes_over(self, store: Store, *, after: float = 0) -> None:
        """Epoch 2, once so many seconds have passed."""
        with self.take(store) as lease:
            assert lease.epoch == 2
        assert self.now == 1000 + after

    def is_refused(self, store: Store, match: str | None = None) -> LeaseHeldError:
        with pytest.raises(LeaseHeldError, match=match) as caught, self.take(store):
            pass
        return caught.value


def leave_lease(store: Store, epoch: int = 1, *, beats: bool = True, **changes: object) -> None:
    """A lease as another process would have left it; by default one of another machine."""
    owner = Owner.this_process("run-elsewhere").model_copy(update={"host": "elsewhere", **changes})
    assert store.create_exclusive(f"leases/{epoch:06d}.json", owner.to_bytes())
    if beats:
        store.overwrite(f"leases/{epoch:06d}.beat", b"1 then\n")


def leave_lease_of_the_dead(store: Store) -> None:
    """Of this host, by a process whose number another one has now."""
    me = Owner.this_process("me")
    leave_lease(store, host=me.host, process_start=me.process_start - 1)


def beat(store: Store, epoch: int = 1) -> Callable[[], None]:
    return lambda: store.overwrite(f"leases/{epoch:06d}.beat", b"2 later\n")


@contextmanager
def child_with_lease(store: Store):
    """A process that holds the lease until it is killed."""
    script = (
        "import pickle, sys; from pipelines.index.lease import hold_lease\n"
        "store = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "with hold_lease(store, 'run-child'):\n"
        "    print('held', flush=True); sys.stdin.readline()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, pickle.dumps(store).hex()],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        try:
            assert child.stdout.readline() == "held\n"
            yield child
        finally:
            child.kill()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.005)


# One after another


@pytest.mark.parametrize("place", ["local", "s3"])
def test_hold_lease_is_held_until_it_is_released_and_lost_when_taken_over(place, request, store):
    if place == "s3":
        uri, options = request.getfixturevalue("s3_bucket")
        store = open_store(f"{uri}/index", options)
    with hold_lease(store, "run-a") as lease:
        assert lease.epoch == 1
        owner = Owner.model_validate_json(store.read("leases/000001.json"))
        assert (owner.run_id, owner.pid) == ("run-a", os.getpid())
        assert abs(datetime.now(UTC) - owner.acquired) < timedelta(minutes=1)
        assert not store.exists("leases/000001.released")
        lease.check()
    assert store.exists("leases/000001.released")
    with Observer().take(store) as lease:  # at once
        lease.check()
        leave_lease(store, 3)
        with pytest.raises(LeaseHeldError, match="another run took over epoch 2"):
            lease.check()


def test_hold_lease_run_fails_lease_is_released_and_error_kept(store):
    with pytest.raises(ZeroDivisionError), hold_lease(store, "run-a"):
        raise ZeroDivisionError
    assert store.exists("leases/000001.released")


def test_hold_lease_beat_changes_while_held(store):
    def seen() -> bytes:
        try:
            return store.read("leases/000001.beat")
        except FileNotFoundError:
            return b""

    with hold_lease(store, "run-a", beat_seconds=0.01):
        for _ in range(3):
            before = seen()
            wait_until(lambda before=before: seen() != before)
    last = seen()
    time.sleep(0.05)
    assert seen() == last


# This host


@needs_proc
def test_hold_lease_owner_alive_is_refused_naming_it_and_killed_is_replaced_at_once(store):
    with child_with_lease(store) as child:
        observer = Observer()
        error = observer.is_refused(store)
        owner = f"run run-child on {os.uname().nodename} (pid {child.pid}), started 0:0"
        assert owner in str(error)
        assert error.remedy == f"Wait for it, or stop it: kill {child.pid}."
        assert observer.now == 1000  # did not wait
        child.kill()
        child.wait()
        assert not store.exists("leases/000001.released")
        Observer().takes_over(store)


@needs_proc
def test_hold_lease_owner_is_zombie_is_replaced_at_once(store):
    with child_with_lease(store) as child:
        child.kill()
        stat = Path(f"/proc/{child.pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
        Observer().takes_over(store)


@needs_proc
def test_hold_lease_pid_used_again_is_replaced_at_once(store):
    leave_lease_of_the_dead(store)
    Observer().takes_over(store)


@needs_proc
def test_hold_lease_twice_in_one_process_is_refused(store):
    with hold_lease(store, "run-a"):
        Observer().is_refused(store)


@needs_proc
def test_owner_stat_with_odd_process_name_is_read(tmp_path):
    proc, pid = tmp_path / "proc", os.getpid()
    for folder in ("sys/kernel/random", "self/ns", str(pid)):
        (proc / folder).mkdir(parents=True)
    (proc / "sys/kernel/random/boot_id").write_text("boot\n")
    (proc / "self/ns/pid").symlink_to("pid:[7]")
    real = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    (proc / str(pid) / "stat").write_text(f"{pid} (a) Z 1 (b){real}")
    owner = Owner.this_process("run", proc)
    assert (owner.boot_id, owner.pid_namespace) == ("boot", "pid:[7]")
    assert owner.process_start == Owner.this_process("run").process_start


# Other machines


ELSEWHERE = [
    {"host": "elsewhere"},
    {"host": os.uname().nodename, "boot_id": "an earlier boot"},
    {"host": os.uname().nodename, "pid_namespace": "pid:[1]"},
    {"host": os.uname().nodename, "boot_id": None, "pid_namespace": None, "process_start": None},
]


@pytest.mark.parametrize("where", ELSEWHERE)
def test_hold_lease_elsewhere_is_refused_while_it_beats_and_taken_over_after_expiry(where, store):
    leave_lease(store, **where, pid=os.getpid())
    Observer(at_58=beat(store)).is_refused(store, "which has a heartbeat")
    assert not store.exists("leases/000002.json")
    Observer().takes_over(store, after=60)


def test_hold_lease_elsewhere_first_beat_only_now_is_refused(store):
    leave_lease(store, beats=False)
    Observer(at_3=beat(store)).is_refused(store, "on elsewhere")


def test_hold_lease_elsewhere_released_meanwhile_is_taken_then(store):
    leave_lease(store)
    release = Observer(at_5=lambda: store.overwrite("leases/000001.released", b""))
    release.takes_over(store, after=5)


def test_hold_lease_elsewhere_third_run_is_faster_is_watched_too(store):
    leave_lease(store)
    third = {"at_50": lambda: leave_lease(store, 2, run_id="run-third"), "at_100": beat(store, 2)}
    Observer(**third).is_refused(store, "run-third")


@pytest.mark.parametrize("skew", [timedelta(days=-400), timedelta(days=400)])
def test_hold_lease_elsewhere_wall_clock_decides_nothing(skew, store):
    leave_lease(store, acquired=datetime.now(UTC) + skew)
    started = "started 0:00:00 ago" if skew > timedelta() else "started 400 days, 0:00:"
    Observer(at_30=beat(store)).is_refused(store, started)


def test_this_process_without_proc_is_known_by_heartbeat_alone(tmp_path):
    owner = Owner.this_process("run", tmp_path)
    assert owner.boot_id is None
    assert owner.is_alive(owner) is None
    assert owner.is_alive(Owner.this_process("run")) is None


# Races and losses


@needs_proc
@pytest.mark.parametrize("held_by_the_dead", [False, True])
def test_hold_lease_race_has_one_winner(store, held_by_the_dead):
    racers = 6
    if held_by_the_dead:
        leave_lease_of_the_dead(store)
    start, done = (threading.Barrier(racers, timeout=30) for _ in range(2))

    def race(racer: int) -> int | None:
        start.wait()
        try:
            with hold_lease(store, f"run-{racer}", expiry_seconds=20) as lease:
                done.wait()
                return lease.epoch
        except LeaseHeldError:
            done.wait()
            return None

    with ThreadPoolExecutor(racers) as pool:
        epochs = [*pool.map(race, range(racers))]
    assert sorted(epochs, key=str) == [1 + held_by_the_dead, *[None] * (racers - 1)]


def test_hold_lease_beat_fails_run_goes_on_with_a_warning(store, tmp_path, caplog):
    (tmp_path / "index/leases/000001.beat").mkdir(parents=True)  # a file cannot replace a folder
    with hold_lease(store, "run-a", beat_seconds=0.01) as lease:
        wait_until(lambda: len(caplog.records) >= 2)
        lease.check()
    said = f"cannot write {store.url('leases/000001.beat')}"
    assert {record.getMessage() for record in caplog.records} == {said}
    assert store.exists("leases/000001.released")


def test_hold_lease_file_is_no_lease_is_an_index_state_error(store):
    store.overwrite("leases/000001.json", b"{}")
    with pytest.raises(IndexStateError, match=r"000001\.json: expected a lease") as caught:
        hold_lease(store, "run-a").__enter__()
    assert "\n" not in str(caught.value)


def test_hold_lease_other_files_beside_it_do_not_matter(store):
    store.overwrite("leases/notes.json", b"")
    store.overwrite("leases/000009.beat", b"")
    with hold_lease(store, "run-a") as lease:
        assert lease.epoch == 1


class OverwritingStore(Store):
    """Like the S3 look-alikes that ignore If-None-Match."""

    def create_exclusive(self, path: str, data: bytes) -> bool:
        self.overwrite(path, data)
        return True


def test_hold_lease_store_that_overwrites_is_refused(tmp_path):
    with pytest.raises(StorageError, match="creates files exclusively"):
        hold_lease(OverwritingStore(str(tmp_path)), "run-a").__enter__()
