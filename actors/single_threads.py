"""As many threads as torch has, each of which computes alone.

An operation that all threads have a share of waits for the slowest of them, and numpy's share is
one thread's anyway: work that comes in pieces is done a piece a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


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
