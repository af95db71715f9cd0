"""Rows of tokens as micro-batches on a device: in an order that suits it, one bad row alone.

On a CPU rows are ordered by length, since attention there goes by runs of equally long ones, the
longest first, so that the threads end together; each of them takes a micro-batch: an operation that
all have a share of waits for the slowest. Knows lengths, neither tokens nor what is computed of
them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import torch

from actors.host_memory import keep_freed_blocks
from actors.micro_batches import next_stop
from actors.single_threads import SingleThreads

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

        def run(rows: np.ndarray) -> None:
            self._run(lengths, rows, compute, failures)

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
        self, lengths: np.ndarray, rows: np.ndarray, compute: Compute, failures: dict[int, str]
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
            self._run(lengths, rows[:middle], compute, failures)
            self._run(lengths, rows[middle:], compute, failures)
