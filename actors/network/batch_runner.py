"""Rows of tokens as micro-batches on a device: in an order that suits it, one bad row alone.

On a CPU rows are ordered by length, since attention there goes by runs of equally long ones, the
longest first, so that the threads end together; each of them takes a micro-batch: an operation that
all have a share of waits for the slowest. Knows lengths, neither tokens nor what is computed of
them.
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
"""On a CPU: of a micro-batch that is made for a thread of its own."""

Compute = Callable[[np.ndarray], None]
"""What is done with the rows of one micro-batch."""


class BatchRunner:
    """A device that one caller at a time has."""

    def __init__(self, device: torch.device, max_batch_tokens: int | None) -> None:
        """`max_batch_tokens`: of a micro-batch; when not given 16,384 on CUDA, 3,072 on a CPU."""
        self.max_batch_tokens = max_batch_tokens or (3_072 if device.type == "cpu" else 16_384)
        """Lower once the device has run out of memory."""
        self.on_cpu = device.type == "cpu"
        if self.on_cpu:
            keep_freed_blocks()
        self._lock = threading.Lock()
        self._threads = SingleThreads()

    def run(self, lengths: np.ndarray, compute: Compute) -> dict[int, str]:
        """Compute all rows of so many tokens; why some could not be, by row.

        A micro-batch that fails is bisected, so that one bad row fails alone. Running out of memory
        also halves the token budget for good.

        Raises:
            torch.AcceleratorError: the device failed for good.
        """
        failures: dict[int, str] = {}
        rows = np.flatnonzero(lengths)
        for row in np.flatnonzero(lengths == 0):  # its first token would be its neighbour's
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
        """Rows as micro-batches: on a CPU as many as there are threads, or a multiple of that."""
        ends = np.concatenate(([0], np.cumsum(lengths)))
        tokens, most = int(ends[-1]), self.max_batch_tokens
        threads = min(torch.get_num_threads(), max(tokens // _LEAST_TOKENS, 1))
        batches = -(-tokens // (most * threads)) * threads
        start = 0
        while start < len(rows):
            budget = most
            if self.on_cpu:  # an equal share of what is left, give or take half a row
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
        except (RuntimeError, IndexError) as error:  # what kernels raise; OutOfMemoryError is one
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
    """Raise DeviceError where the device fails for good; `expected`: vectors, or scores."""
    try:
        yield
    except torch.AcceleratorError as error:
        reason = " ".join(str(error).split())
        raise DeviceError(
            f"{device}: expected {expected}, found {reason:.200}.", "Start the process again."
        ) from error


class SingleThreads:
    """Pools by torch's number of threads, which may change between calls."""

    def __init__(self) -> None:
        self._pools: dict[int, ThreadPoolExecutor] = {}
        self._lock = threading.Lock()

    def run(self, work: Callable[[T], None], pieces: Iterable[T]) -> None:
        """All pieces; in this thread, with all of torch's, where there is one of either.

        Raises: what the first piece that fails does.
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
                    torch.get_num_threads()  # the first call in a thread undoes what was set before
                    torch.set_num_threads(1)
                    started.wait()

                self._pools[threads] = ThreadPoolExecutor(threads, "single", initializer=start)
                for _ in range(threads):
                    self._pools[threads].submit(int)
                started.wait()
                torch.set_num_threads(threads)  # what threads begin with that are started later
            return self._pools[threads]


_KEPT_BYTES = 256 << 20
# Parameters of mallopt(3), by malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGEST_THRESHOLD = 32 << 20
"""glibc takes no higher one: larger blocks come from the kernel each time."""


def keep_freed_blocks() -> None:
    """Keep up to 256 MiB of what this process frees; where there is no glibc nothing happens.

    Threads that start later share one heap, since only that one is not cut into pieces of 64 MiB
    that come and go. Small blocks have a cache in each thread, as before.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
    mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
