"""Overlaps encoding and writing in one actor.

The first slice holds the encoder until its last passage. Its vectors are written meanwhile and
while the next slice is encoded. If slices alternated, all would finish at the same time, and the
encoder would wait while they were written. Encoded but unwritten batches are bounded by bytes; a
slice that reaches the bound yields the encoder to others.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from actors.encoded import EncodedBatch

_AHEAD_BYTES = 64 << 20  # per slice; a single batch may be larger


@dataclass
class Spent:
    """The seconds that one slice spent in each phase."""

    encoding: float = 0.0
    """Seconds in which the slice held the encoder."""
    waiting: float = 0.0
    """Seconds in which the writer waited for encoded batches."""
    writing: float = 0.0
    """Seconds to assemble rows and write them to a local file."""
    uploading: float = 0.0
    """Seconds to upload the local file to the index."""


@dataclass
class _Buffer:
    """Encoded, unwritten batches of one slice; guarded by the condition of `EncoderQueue`."""

    batches: deque[EncodedBatch] = field(default_factory=deque)
    bytes: int = 0
    ended: bool = False
    error: BaseException | None = None
    closed: bool = False
    """Whether the reader has finished."""


class EncoderQueue:
    """Queue of slices for the encoder of one actor. Safe to share between threads."""

    def __init__(self, ahead_bytes: int = _AHEAD_BYTES) -> None:
        """`ahead_bytes`: the most bytes that a slice may have encoded but not written."""
        self._ahead_bytes = ahead_bytes
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._waiting: set[int] = set()
        self._taken = False

    def run(self, batches: Iterator[EncodedBatch], spent: Spent) -> Iterator[EncodedBatch]:
        """Yield the batches in order. A separate thread makes them; its errors are raised here."""
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
        except BaseException as raised:  # noqa: BLE001  the reader raises the error
            error = raised
        with self._changed:
            self._taken = False
            buffer.ended, buffer.error = True, error
            self._changed.notify_all()

    def _take(self, number: int) -> None:
        """Wait for the encoder, in order of arrival."""
        with self._changed:
            self._waiting.add(number)
            self._changed.wait_for(lambda: not self._taken and min(self._waiting) == number)
            self._waiting.remove(number)
            self._taken = True
            self._changed.notify_all()

    def _put(self, number: int, batch: EncodedBatch, buffer: _Buffer) -> None:
        """Add a batch to the buffer; while the buffer is full, yield the encoder to others."""
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
