"""Overlaps encoding and writing in one actor.

The slice that came first has the encoder until its last passage; what it has encoded is written
meanwhile and afterwards, while the next slice is encoded. If slices took turns, all would be
written at the same time while the encoder waited. Encoded batches that are not yet written are
bounded by bytes; a slice that reaches the bound lets others pass.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from actors.encoded import EncodedBatch

_AHEAD_BYTES = 64 << 20  # of one slice; one batch may be larger


@dataclass
class Spent:
    """Seconds of one slice."""

    encoding: float = 0.0
    """It had the encoder."""
    waiting: float = 0.0
    """Who writes had nothing to write."""
    writing: float = 0.0
    """Rows were put together and written to a local file."""
    uploading: float = 0.0
    """That file was brought to the index."""


@dataclass
class _Buffer:
    """What one slice has encoded and not written; guarded by the condition of `EncoderQueue`."""

    batches: deque[EncodedBatch] = field(default_factory=deque)
    bytes: int = 0
    ended: bool = False
    error: BaseException | None = None
    closed: bool = False
    """Nobody reads it any more."""


class EncoderQueue:
    """Slices that wait for the encoder of one actor. Safe to share between their threads."""

    def __init__(self, ahead_bytes: int = _AHEAD_BYTES) -> None:
        """`ahead_bytes`: how far a slice's encoding may be ahead of its writing."""
        self._ahead_bytes = ahead_bytes
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._waiting: set[int] = set()
        self._taken = False

    def run(self, batches: Iterator[EncodedBatch], spent: Spent) -> Iterator[EncodedBatch]:
        """The batches, in order, made in a thread of their own; what it raises is raised here."""
        buffer, number = _Buffer(), next(self._numbers)
        thread = threading.Thread(
            target=self._fill, args=(number, batches, buffer, spent), name="encode", daemon=True
        )
        thread.start()
        try:
            while (batch := self._next(buffer, spent)) is not None:
                yield batch
        finally:
            with self._changed:
                buffer.closed = True
                self._changed.notify_all()
            thread.join()

    def _next(self, buffer: _Buffer, spent: Spent) -> EncodedBatch | None:
        began = time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: buffer.batches or buffer.ended)
            spent.waiting += time.monotonic() - began
            if buffer.batches:
                batch = buffer.batches.popleft()
                buffer.bytes -= batch.columns.nbytes
                self._changed.notify_all()
                return batch
        if buffer.error:
            raise buffer.error
        return None

    def _fill(
        self, number: int, batches: Iterator[EncodedBatch], buffer: _Buffer, spent: Spent
    ) -> None:
        error: BaseException | None = None
        self._take(number)
        try:
            while not buffer.closed:
                began = time.monotonic()
                batch = next(batches, None)
                spent.encoding += time.monotonic() - began
                if batch is None:
                    break
                self._put(number, batch, buffer)
        except BaseException as raised:  # noqa: BLE001  the reader raises it
            error = raised
        with self._changed:
            self._taken = False
            buffer.ended, buffer.error = True, error
            self._changed.notify_all()

    def _take(self, number: int) -> None:
        """Wait for the encoder; slices that came earlier go first."""
        with self._changed:
            self._waiting.add(number)
            self._changed.wait_for(lambda: not self._taken and min(self._waiting) == number)
            self._waiting.remove(number)
            self._taken = True
            self._changed.notify_all()

    def _put(self, number: int, batch: EncodedBatch, buffer: _Buffer) -> None:
        """Hand over a batch; while there is no room for it, others may have the encoder."""
        size = batch.columns.nbytes

        def has_room() -> bool:
            fits = buffer.bytes + size <= self._ahead_bytes
            return fits or not buffer.batches or buffer.closed

        with self._changed:
            had_to_wait = not has_room()
            if had_to_wait:
                self._taken = False
                self._changed.notify_all()
                self._changed.wait_for(has_room)
            buffer.batches.append(batch)
            buffer.bytes += size
            self._changed.notify_all()
        if had_to_wait:
            self._take(number)
