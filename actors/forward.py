"""Forward passes over a window of passages: micro-batches in, vectors in input order out.

A window is what one `EncodedBatch` holds. On CUDA it is one micro-batch. On a CPU it is several,
ordered by length, since attention there goes by runs of equally long passages; and each of its
threads takes a micro-batch: an operation that all of them have a share of waits for the slowest.
Knows tokens and vectors, neither texts nor Arrow.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from actors.config import Output
from actors.heads import OutputHeads, Vectors
from actors.micro_batches import TokenRows, next_stop
from actors.packing import PackedBatch, pack

Backbone = Callable[[PackedBatch], torch.Tensor]
"""A packed micro-batch in, the last hidden states [T, H] out."""

_WINDOW_BATCHES = 8
_LEAST_TOKENS = 256
"""On a CPU: of a micro-batch that is made for a thread of its own."""


@dataclass(frozen=True)
class WindowVectors:
    """The vectors of a window, in input order, perhaps still on their way to the host."""

    vectors: Vectors
    failures: dict[int, str]
    """Row of the window -> why it could not be run; its vectors are zeros."""
    arrived: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Until the vectors are on the host."""
        if self.arrived is not None:
            self.arrived.synchronize()


class Forward:
    """A backbone and its heads on a device; one window at a time has it, whoever asks."""

    def __init__(
        self,
        backbone: Backbone,
        heads: OutputHeads,
        *,
        device: torch.device,
        first_position: int,
        max_batch_tokens: int | None,
    ) -> None:
        """`max_batch_tokens`: of a micro-batch; when not given 16,384 on CUDA, 2,048 on a CPU."""
        self.backbone = backbone
        self.max_batch_tokens = max_batch_tokens or (2_048 if device.type == "cpu" else 16_384)
        """Lower once the device has run out of memory."""
        self._heads = heads
        self._device = device
        self._on_cpu = device.type == "cpu"
        self._first_position = first_position
        self._lock = threading.Lock()
        self._pools: dict[int, ThreadPoolExecutor] = {}

    @property
    def window_tokens(self) -> int:
        """Token budget of a window; on CUDA that of a micro-batch."""
        batches = max(_WINDOW_BATCHES, torch.get_num_threads()) if self._on_cpu else 1
        return batches * self.max_batch_tokens

    @torch.inference_mode()
    def __call__(
        self, values: np.ndarray, offsets: np.ndarray, outputs: Collection[Output]
    ) -> WindowVectors:
        """Encode passages values[offsets[i]:offsets[i + 1]]; on CUDA what returns is on its way.

        A micro-batch that fails is bisected, so that one bad passage fails alone. Running out of
        memory also halves the token budget for good.

        Raises:
            torch.AcceleratorError: the device failed for good.
        """
        window = _Window(values, offsets, self._heads, outputs, self._device)
        lengths = np.diff(offsets)
        rows = np.flatnonzero(lengths)
        for row in np.flatnonzero(lengths == 0):  # its first token would be its neighbour's
            window.failures[int(row)] = "a passage without tokens"
        if self._on_cpu:
            rows = rows[np.argsort(lengths[rows], kind="stable")]
        with self._lock:
            batches = list(self._cut(rows, lengths[rows]))
            if len(batches) > 1 and self._on_cpu and torch.get_num_threads() > 1:
                list(self._pool().map(lambda rows: self._run(window, rows), batches))
            else:
                for batch in batches:
                    self._run(window, batch)
        return window.encoded()

    def _cut(self, rows: np.ndarray, lengths: np.ndarray) -> Iterator[np.ndarray]:
        """Rows as micro-batches: as many as there are threads, or a multiple of that."""
        ends = np.concatenate(([0], np.cumsum(lengths)))
        tokens, budget = int(ends[-1]), self.max_batch_tokens
        if self._on_cpu and tokens:
            threads = min(torch.get_num_threads(), max(tokens // _LEAST_TOKENS, 1))
            batches = -(-tokens // (budget * threads)) * threads
            budget = min(budget, -(-tokens // batches) + int(lengths.max()) // 2)
        start = 0
        while start < len(rows):
            stop = next_stop(ends, start, budget)
            yield rows[start:stop]
            start = stop

    def _pool(self) -> ThreadPoolExecutor:
        """A thread for each of torch's, in which an operation has one thread."""
        threads = torch.get_num_threads()
        if threads not in self._pools:
            started = threading.Barrier(threads + 1)

            def start() -> None:
                torch.set_num_threads(1)
                started.wait()

            self._pools[threads] = ThreadPoolExecutor(threads, "forward", initializer=start)
            for _ in range(threads):
                self._pools[threads].submit(int)
            started.wait()
            torch.set_num_threads(threads)  # what threads begin with that are started from now on
        return self._pools[threads]

    @torch.inference_mode()
    def _run(self, window: _Window, rows: np.ndarray) -> None:
        try:
            self._run_rows(window, rows)
            return
        except torch.AcceleratorError:
            raise
        except (RuntimeError, IndexError) as error:  # what kernels raise; OutOfMemoryError is one
            reason = f"{type(error).__name__}: {error!s:.200}"
            if isinstance(error, torch.OutOfMemoryError):
                half = int(window.lengths[rows].sum()) // 2
                self.max_batch_tokens = max(min(self.max_batch_tokens, half), 1)
        # Outside the handler: the error's traceback would keep the failed forward's tensors alive.
        if len(rows) == 1:
            window.failures[int(rows[0])] = reason
        else:
            middle = len(rows) // 2
            self._run(window, rows[:middle])
            self._run(window, rows[middle:])

    def _run_rows(self, window: _Window, rows: np.ndarray) -> None:
        tokens = TokenRows.of(window.offsets, rows)
        packed = pack(
            window.values[tokens.places_T],
            tokens.cu_seqlens,
            first_position=self._first_position,
            device=self._device,
        )
        vectors = self._heads(self.backbone(packed), packed, window.outputs)
        window.place(vectors, rows, tokens)


class _Window:
    """The vectors of a window's passages, as they come."""

    def __init__(
        self,
        values: np.ndarray,
        offsets: np.ndarray,
        heads: OutputHeads,
        outputs: Collection[Output],
        device: torch.device,
    ) -> None:
        self.values, self.offsets, self.outputs = values, offsets, outputs
        self.lengths = np.diff(offsets)
        self.failures: dict[int, str] = {}
        self._heads, self._device = heads, device
        self._vectors: Vectors | None = None
        self._lock = threading.Lock()

    def place(self, vectors: Vectors, rows: np.ndarray, tokens: TokenRows) -> None:
        """Put the vectors of these passages where they belong; in inference mode."""
        if len(rows) == len(self.lengths) and (np.diff(rows) == 1).all():
            self._vectors = vectors
            return
        at_T = tokens.places_T - self.offsets[0]
        with_first = np.cumsum(self.lengths > 0)  # ColBERT has no vector of a passage's first
        others = np.delete(at_T, tokens.cu_seqlens[:-1])
        at_C = others - np.repeat(with_first[rows], self.lengths[rows] - 1)
        at = (torch.from_numpy(places).to(self._device) for places in (rows, at_T, at_C))
        self._all().put(vectors, *at)

    def encoded(self) -> WindowVectors:
        """All of them, on their way to the host."""
        vectors = self._all()
        if self._device.type != "cuda":
            return WindowVectors(vectors, self.failures)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        vectors = vectors.to_pinned()
        arrived.record(torch.cuda.current_stream(self._device))
        return WindowVectors(vectors, self.failures, arrived)

    def _all(self) -> Vectors:
        with self._lock:
            if self._vectors is None:
                passages = int((self.lengths > 0).sum())
                tokens = int(self.lengths.sum())
                self._vectors = self._heads.zeros(
                    len(self.lengths), tokens, tokens - passages, self.outputs, self._device
                )
            return self._vectors
