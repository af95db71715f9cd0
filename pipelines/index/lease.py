"""One writer per index: a lease on the store, a heartbeat while it is held.

    with hold_lease(store, run_id) as lease:
        ...
        lease.check()
        store.create_exclusive(manifest, ...)

    leases/000007.json      who took the lease for the 7th time; created exclusively
    leases/000007.beat      overwritten by the owner while it lives
    leases/000007.released  left by the owner at the end

A dead owner on this host is replaced at once, any other after a while without a heartbeat, by this
process's monotonic clock: wall clocks of two machines are never compared. The lease spares work; it
is the exclusive creation of the manifest that keeps the index whole. Knows nothing of runs.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from actors.errors import IndexStateError, LeaseHeldError, StorageError
from pipelines.index.layout import lease_path, new_nonce
from pipelines.index.records import JsonRecord
from pipelines.store.store import Store

BEAT_SECONDS = 10.0
EXPIRY_SECONDS = 60.0
"""Several beats: a hiccup of the store must not look like a death."""

_PROC = Path("/proc")
_logger = logging.getLogger(__name__)


class Owner(JsonRecord):
    """The process that took a lease, as its lease file says."""

    host: str
    boot_id: str | None
    """With `pid_namespace`: where `pid` means something. None where there is no /proc."""
    pid_namespace: str | None
    pid: int
    process_start: int | None
    """Clock ticks after boot; tells a process from a later one with its pid."""
    run_id: str
    nonce: str
    acquired: AwareDatetime
    """For people only."""

    @staticmethod
    def this_process(run_id: str, proc: Path = _PROC) -> Owner:
        """The process that asks."""
        boot_id = pid_namespace = process_start = None
        try:
            pid_namespace = str((proc / "self/ns/pid").readlink())
            process_start = _process_stat(os.getpid(), proc)[1]
            boot_id = (proc / "sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            pass  # not Linux: this owner is known by its heartbeat alone
        return Owner(
            host=socket.gethostname(),
            boot_id=boot_id,
            pid_namespace=pid_namespace,
            pid=os.getpid(),
            process_start=process_start,
            run_id=run_id,
            nonce=new_nonce(),
            acquired=datetime.now(UTC),
        )

    def is_alive(self, me: Owner) -> bool | None:
        """Whether the process lives; None where `me`, the observer, cannot see it."""
        where = (self.host, self.boot_id, self.pid_namespace)
        if None in where or where != (me.host, me.boot_id, me.pid_namespace):
            return None
        try:
            os.kill(self.pid, 0)  # sees processes that a /proc mounted with hidepid does not show
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # it is there, and someone else's
        try:
            state, start = _process_stat(self.pid, _PROC)
        except OSError:
            return None
        return state not in "ZX" and start == self.process_start

    def describe(self) -> str:
        """Who and since when, for a message."""
        seconds = (datetime.now(UTC) - self.acquired).total_seconds()
        age = timedelta(seconds=max(0, int(seconds)))
        return f"run {self.run_id} on {self.host} (pid {self.pid}), started {age} ago"


@dataclass(frozen=True)
class Lease:
    """The right to write an index, until another run takes it over."""

    store: Store
    epoch: int

    def check(self) -> None:
        """Make sure that the lease still is this run's. Call it just before the commit.

        Raises:
            LeaseHeldError: another run has taken it over.
        """
        newest = _newest_epoch(self.store)
        if newest != self.epoch:
            raise LeaseHeldError(
                f"{self.store.url('leases')}: expected this run's lease, epoch {self.epoch}, to be "
                f"the newest, found epoch {newest}: another run took over epoch {self.epoch}.",
                "Nothing was committed. See why this run was silent for so long, then start again.",
            )


@contextmanager
def hold_lease(
    store: Store,
    run_id: str,
    *,
    beat_seconds: float = BEAT_SECONDS,
    expiry_seconds: float = EXPIRY_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Lease]:
    """Take the lease of an index, keep it alive in a thread, release it at the end.

    Returns at once, or, where the last owner is on another machine and left no release, after
    watching its heartbeat for up to `expiry_seconds` of `clock` (monotonic), with `sleep` between.

    Raises:
        LeaseHeldError: another run holds it.
        IndexStateError: a lease file that is none.
        StorageError: the store cannot be used, or does not create exclusively.
    """
    epoch = _Taking(store, run_id, beat_seconds, expiry_seconds, clock, sleep).take()
    stop = threading.Event()
    beat = threading.Thread(
        target=_beat, args=(store, epoch, beat_seconds, stop), name=f"lease-{epoch}", daemon=True
    )
    beat.start()
    try:
        yield Lease(store, epoch)
    finally:
        stop.set()
        beat.join(beat_seconds)  # a beat that hangs must not keep the run from ending
        _write(store, lease_path(epoch, "released"), datetime.now(UTC).isoformat())


@dataclass(frozen=True)
class _Taking:
    store: Store
    run_id: str
    beat_seconds: float
    expiry_seconds: float
    clock: Callable[[], float]
    sleep: Callable[[float], None]

    def take(self) -> int:
        """The epoch this process now owns."""
        me = Owner.this_process(self.run_id)
        while True:
            newest = _newest_epoch(self.store)
            if newest:
                self._wait_for_end(newest, me)
            path = lease_path(newest + 1, "json")
            if not self.store.create_exclusive(path, me.to_bytes()):
                continue  # another run was faster: look again
            probe = me.model_copy(update={"nonce": new_nonce()})
            # Some stores that speak S3 ignore the condition and overwrite.
            if self.store.create_exclusive(path, probe.to_bytes()):
                raise StorageError(
                    f"{self.store.uri}: expected a store that creates exclusively, "
                    "found one that overwrites.",
                    "Use one with conditional writes (If-None-Match), or a newer version of it.",
                )
            return newest + 1

    def _wait_for_end(self, epoch: int, me: Owner) -> None:
        """Return once the owner of an epoch is known to write no more."""
        if self.store.exists(lease_path(epoch, "released")):
            return
        path = lease_path(epoch, "json")
        try:
            owner = Owner.model_validate_json(self.store.read(path))
        except ValidationError as error:
            raise IndexStateError(
                f"{self.store.url(path)}: expected a lease, found something else "
                f"({error.errors()[0]['msg']}).",
                "Delete the file if no run is writing this index.",
            ) from error
        alive = owner.is_alive(me)
        if alive:
            raise self._held(owner, "is alive", f"Wait for it, or stop it: kill {owner.pid}")
        if alive is None:
            self._watch(epoch, owner)
        _logger.warning("taking over from %s, which is gone", owner.describe())

    def _watch(self, epoch: int, owner: Owner) -> None:
        _logger.warning(
            "waiting up to %g s for a heartbeat of %s", self.expiry_seconds, owner.describe()
        )
        before = self._last_beat(epoch)
        start = now = self.clock()
        while now - start < self.expiry_seconds:
            self.sleep(min(self.beat_seconds / 2, start + self.expiry_seconds - now))
            now = self.clock()  # before the look: the beat is at least this old
            if self._last_beat(epoch) != before:
                raise self._held(
                    owner,
                    "has a heartbeat",
                    f"Wait for it, or stop it there and wait {self.expiry_seconds:g} s",
                )
            if self.store.exists(lease_path(epoch, "released")):
                return

    def _last_beat(self, epoch: int) -> bytes:
        try:
            return self.store.read(lease_path(epoch, "beat"))
        except FileNotFoundError:
            return b""

    def _held(self, owner: Owner, why: str, remedy: str) -> LeaseHeldError:
        return LeaseHeldError(
            f"{self.store.uri}: expected no other writer, found {owner.describe()}, which {why}.",
            f"{remedy}.",
        )


def _beat(store: Store, epoch: int, seconds: float, stop: threading.Event) -> None:
    count = 0
    while not stop.is_set():
        count += 1
        _write(store, lease_path(epoch, "beat"), f"{count} {datetime.now(UTC).isoformat()}")
        stop.wait(seconds)


def _write(store: Store, path: str, text: str) -> None:
    """Write a beat or a release; failing at it costs others a wait, and is no reason to stop."""
    try:
        store.overwrite(path, f"{text}\n".encode())
    except Exception:
        _logger.warning("cannot write %s", store.url(path), exc_info=True)


def _newest_epoch(store: Store) -> int:
    """0 when the lease has never been taken."""
    found = (lease_path.match(path) for path in store.list("leases"))
    return max((int(f["epoch"]) for f in found if f and f["state"] == "json"), default=0)


def _process_stat(pid: int, proc: Path) -> tuple[str, int]:
    """(state, start time) of a process: fields 3 and 22 of its stat file, see proc(5)."""
    # Field 2, the name in parentheses, may hold spaces and parentheses itself.
    after_name = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return after_name[0], int(after_name[19])
