"""Ensures one writer per index: a lease on the store, and a heartbeat while it is held.

    with hold_lease(store, run_id) as lease:
        ...
        lease.check()
        store.create_exclusive(manifest, ...)

    leases/000007.json      the owner of epoch 7; created exclusively
    leases/000007.beat      the heartbeat; overwritten by the owner while it lives
    leases/000007.released  written by the owner when it ends

The lease of a dead process on this host is taken over at once. Any other lease is taken over when
no heartbeat was seen for a while by this process's monotonic clock; wall clocks of two machines are
never compared. The lease only avoids wasted work: the exclusive creation of the manifest protects
the index.
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
"""Several times BEAT_SECONDS, so that a short failure of the store does not look like a crash."""

_PROC = Path("/proc")
_logger = logging.getLogger(__name__)


class Owner(JsonRecord):
    """The process that took a lease, as recorded in the lease file."""

    host: str
    boot_id: str | None
    """With `pid_namespace`, the scope in which `pid` is valid. None on systems without /proc."""
    pid_namespace: str | None
    pid: int
    process_start: int | None
    """Clock ticks after boot; distinguishes a process from a later one with the same pid."""
    run_id: str
    nonce: str
    acquired: AwareDatetime
    """Time for messages only; it decides nothing."""

    @staticmethod
    def this_process(run_id: str, proc: Path = _PROC) -> Owner:
        """Describe the current process as the owner of a lease."""
        boot_id = pid_namespace = process_start = None
        try:
            pid_namespace = str((proc / "self/ns/pid").readlink())
            process_start = _process_stat(os.getpid(), proc)[1]
            boot_id = (proc / "sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            pass  # not Linux: other processes can only watch the heartbeat of this owner
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
        """Return whether the process lives; None if the observer `me` cannot see it."""
        where = (self.host, self.boot_id, self.pid_namespace)
        if None in where or where != (me.host, me.boot_id, me.pid_namespace):
            return None
        try:
            os.kill(self.pid, 0)  # finds processes that /proc hides when mounted with hidepid
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # the process exists and belongs to another user
        try:
            state, start = _process_stat(self.pid, _PROC)
        except OSError:
            return None
        return state not in "ZX" and start == self.process_start

    def describe(self) -> str:
        """Describe the owner and its age, for a message."""
        seconds = (datetime.now(UTC) - self.acquired).total_seconds()
        age = timedelta(seconds=max(0, int(seconds)))
        return f"run {self.run_id} on {self.host} (pid {self.pid}), started {age} ago"


@dataclass(frozen=True)
class Lease:
    """The right to write to an index, until another run takes it over."""

    store: Store
    epoch: int

    def check(self) -> None:
        """Check that this run still holds the lease. Call it just before the commit.

        Raises:
            LeaseHeldError: another run has taken over the lease.
        """
        newest = _newest_epoch(self.store)
        if newest != self.epoch:
            raise LeaseHeldError(
                f"{self.store.url('leases')}: expected this run's lease, epoch {self.epoch}, to be "
                f"the newest, found epoch {newest}: another run took over epoch {self.epoch}.",
                "Nothing was committed. Find out why this run sent no heartbeat, then restart it.",
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
    """Take the lease of an index, renew it in a thread, and release it at the end.

    The heartbeat of an owner on another machine that has not released the lease is first watched
    for up to `expiry_seconds` of `clock` (monotonic), with `sleep` in between.

    Raises:
        LeaseHeldError: another run holds the lease. IndexStateError: a lease file is invalid.
        StorageError: the store cannot be used, or does not create files exclusively.
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
        beat.join(beat_seconds)  # a write that hangs must not keep the run from ending
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
        """Take the lease; returns the new epoch."""
        me = Owner.this_process(self.run_id)
        while True:
            newest = _newest_epoch(self.store)
            if newest:
                self._wait_for_end(newest, me)
            path = lease_path(newest + 1, "json")
            if not self.store.create_exclusive(path, me.to_bytes()):
                continue  # another run was faster: check its lease
            probe = me.model_copy(update={"nonce": new_nonce()})
            # Some S3-compatible stores ignore the condition and overwrite the file.
            if self.store.create_exclusive(path, probe.to_bytes()):
                raise StorageError(
                    f"{self.store.uri}: expected a store that creates files exclusively, "
                    "found one that overwrites.",
                    "Use a store (or a newer version) with conditional writes (If-None-Match).",
                )
            return newest + 1

    def _wait_for_end(self, epoch: int, me: Owner) -> None:
        """Return as soon as the owner of an epoch is known to have stopped writing."""
        if self.store.exists(lease_path(epoch, "released")):
            return
        path = lease_path(epoch, "json")
        try:
            owner = Owner.model_validate_json(self.store.read(path))
        except ValidationError as error:
            raise IndexStateError(
                f"{self.store.url(path)}: expected a lease, found an invalid file "
                f"({error.errors()[0]['msg']}).",
                "Delete the file if no run is writing to this index.",
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
            now = self.clock()  # before reading: the beat is at least this old
            if self._last_beat(epoch) != before:
                raise self._held(
                    owner,
                    "has a heartbeat",
                    f"Wait for it, or stop it on its machine and wait {self.expiry_seconds:g} s",
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
    """Write a heartbeat or a release; a failure only makes others wait, so it is logged."""
    try:
        store.overwrite(path, f"{text}\n".encode())
    except Exception:
        _logger.warning("cannot write %s", store.url(path), exc_info=True)


def _newest_epoch(store: Store) -> int:
    """Return the newest epoch, 0 if the lease was never taken."""
    found = (lease_path.match(path) for path in store.list("leases"))
    return max((int(f["epoch"]) for f in found if f and f["state"] == "json"), default=0)


def _process_stat(pid: int, proc: Path) -> tuple[str, int]:
    """Return (state, start time) of a process: fields 3 and 22 of its stat file, see proc(5)."""
    # Field 2, the name in parentheses, may itself contain spaces and parentheses.
    after_name = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return after_name[0], int(after_name[19])
