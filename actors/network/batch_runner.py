"""Split token rows into micro-batches, order them for the device, and isolate a row that fails.

On a CPU, rows are ordered by length, because attention processes runs of equal length, and the
longest go first, so that all threads finish at about the same time. Each thread computes its own
micro-batch: operations divided among threads would wait for the slowest one.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch

from actors.errors import DeviceError
from actors.network.micro_batches import next_stop

_LEAST_TOKENS = 256
"""Fewest tokens for which another CPU thread gets a micro-batch."""

Compute = Callable[[np.ndarray], None]
"""Function that computes the rows of one micro-batch."""


class BatchRunner:
    """Runs micro-batches on a device for one caller at a time."""

    def __init__(self, device: torch.device, max_batch_tokens: int | None) -> None:
        """`max_batch_tokens`: by default 16,384 on CUDA and 3,072 on a CPU."""
        self.max_batch_tokens = max_batch_tokens or (3_072 if device.type == "cpu" else 16_384)
        """Token budget of a micro-batch; lowered when the device runs out of memory."""
        self.on_cpu = device.type == "cpu"
        if self.on_cpu:
            keep_freed_blocks()
        self._lock = threading.Lock()
        self._threads = SingleThreads()

    def run(self, lengths: np.ndarray, compute: Compute) -> dict[int, str]:
        """Compute all rows, given their lengths in tokens; return {row: reason} for failed rows.

        A micro-batch that fails is bisected, so that only the failing row is lost. Running out of
        memory also reduces the token budget permanently.

        Raises:
            torch.AcceleratorError: the device failed permanently.
        """
        failures: dict[int, str] = {}
        rows = np.flatnonzero(lengths)
        for row in np.flatnonzero(lengths == 0):  # its first token would be the next row's
            failures[int(row)] = "a passage without tokens"
        if self.on_cpu:
            rows = rows[np.argsort(-lengths[rows], kind="stable")]
        run = functools.partial(self._run, lengths, compute, failures)
        with self._lock:
            batches = list(self._cut(rows, lengths[rows]))
            if self.on_cpu:
                self._threads.run(run, batches)
            else:
                for batch in batches:
                    run(batch)
        return failures

    def _cut(self, rows: np.ndarray, lengths: np.ndarray) -> Iterator[np.ndarray]:
        """Yield micro-batches of rows; on a CPU about an equal number for each thread."""
        ends = np.concatenate(([0], np.cumsum(lengths)))
        tokens, most = int(ends[-1]), self.max_batch_tokens
        threads = min(torch.get_num_threads(), max(tokens // _LEAST_TOKENS, 1))
        batches = -(-tokens // (most * threads)) * threads
        start = 0
        while start < len(rows):
            budget = most
            if self.on_cpu:  # an equal share of the rest, within half a row
                share = -(-int(tokens - ends[start]) // max(batches, 1))
                budget = min(most, share + int(lengths[start]) // 2)
            stop = next_stop(ends, start, budget)
            yield rows[start:stop]
            start, batches = stop, batches - 1

    @torch.inference_mode()
    def _run(
        self, lengths: np.ndarray, compute: Compute, failures: dict[int, str], rows: np.ndarray
    ) -> None:
        try:
            compute(rows)
            return
        except torch.AcceleratorError:
            raise
        except (RuntimeError, IndexError) as error:  # raised by kernels; includes OutOfMemoryError
            reason = f"{type(error).__name__}: {error!s:.200}"
            if isinstance(error, torch.OutOfMemoryError):
                half = int(lengths[rows].sum()) // 2
                self.max_batch_tokens = max(min(self.max_batch_tokens, half), 1)
        # Outside the handler: the error's traceback would keep the failed forward's tensors alive.
        if len(rows) == 1:
            failures[int(rows[0])] = reason
        else:
            middle = len(rows) // 2
            self._run(lengths, compute, failures, rows[:middle])
            self._run(lengths, compute, failures, rows[middle:])


T = TypeVar("T")


@contextmanager
def device_errors(device: str, expected: str) -> Iterator[None]:
    """Convert torch.AcceleratorError into DeviceError; `expected`: "vectors" or "scores"."""
    try:
        yield
    except torch.AcceleratorError as error:
        reason = " ".join(str(error).split())
        raise DeviceError(
            f"{device}: expected {expected}, found {reason:.200}.", "Start the process again."
        ) from error


class SingleThreads:
    """Thread pools whose threads use one torch thread each, by torch's number of threads."""

    def __init__(self) -> None:
        self._pools: dict[int, ThreadPoolExecutor] = {}
        self._lock = threading.Lock()

    def run(self, work: Callable[[T], None], pieces: Iterable[T]) -> None:
        """Run `work` on all pieces in the pool, or in this thread if there is one piece or thread.

        Raises the error of the first piece that fails.
        """
        pieces = list(pieces)
        if len(pieces) > 1 and torch.get_num_threads() > 1:
            list(self._pool().map(work, pieces))
            return
        for piece in pieces:
            work(piece)

    def _pool(self) -> ThreadPoolExecutor:
        threads = torch.get_num_threads()
        with self._lock:
            if threads not in self._pools:
                started = threading.Barrier(threads + 1)

                def start() -> None:
                    torch.get_num_threads()  # the first call in a thread resets the number
                    torch.set_num_threads(1)
                    started.wait()

                self._pools[threads] = ThreadPoolExecutor(threads, "single", initializer=start)
                for _ in range(threads):
                    self._pools[threads].submit(int)
                started.wait()
                torch.set_num_threads(threads)  # default of threads started later
            return self._pools[threads]


_KEPT_BYTES = 256 << 20
# Parameters of mallopt(3), from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGEST_THRESHOLD = 32 << 20
"""Maximum in glibc; larger blocks always come from the kernel."""


def keep_freed_blocks() -> None:
    """Make glibc keep up to 256 MiB of freed memory; do nothing with another C library.

    Threads that start later share one heap, because the others are divided into pieces of 64 MiB
    that are returned to the kernel. Small blocks are still cached in each thread.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
    mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
