"""Run forward passes over a window of passages and return the vectors in input order.

A window is the rows of one `EncodedBatch`: one micro-batch on CUDA, several on a CPU, where rows of
similar length are batched together (batch_runner.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import torch

from actors.config import Output
from actors.network.batch_runner import BatchRunner
from actors.network.heads import OutputHeads, Vectors
from actors.network.micro_batches import TokenRows
from actors.network.packed_bert import PackedBert
from actors.network.packing import PackedBatch, pack

Backbone = Callable[[PackedBatch], torch.Tensor]
"""Function from a packed micro-batch to its last hidden states [T, H]."""

_WINDOW_BATCHES = 12


def first_states(backbone: Backbone, packed: PackedBatch) -> torch.Tensor:
    """Return the last hidden state of each passage's first token [N, H] with the least work."""
    if isinstance(backbone, PackedBert):
        return backbone.first_states(packed)
    return backbone(packed)[packed.firsts_N]


@dataclass(frozen=True)
class WindowVectors:
    """The vectors of a window in input order; their copy to the host may still be running."""

    vectors: Vectors
    failures: dict[int, str]
    """{row of the window: reason} of rows that could not be computed; their vectors are zeros."""
    arrived: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Wait until the vectors are on the host."""
        if self.arrived is not None:
            self.arrived.synchronize()


class Forward:
    """A backbone and its heads on a device, which computes one window at a time."""

    def __init__(
        self,
        backbone: Backbone,
        heads: OutputHeads,
        *,
        device: torch.device,
        first_position: int,
        max_batch_tokens: int | None,
    ) -> None:
        """`max_batch_tokens`: token budget of a micro-batch; as `BatchRunner` when not given."""
        self.backbone = backbone
        self.batches = BatchRunner(device, max_batch_tokens)
        self._heads = heads
        self._device = device
        self._first_position = first_position

    @property
    def window_tokens(self) -> int:
        """Token budget of a window; on CUDA equal to that of a micro-batch."""
        batches = max(_WINDOW_BATCHES, torch.get_num_threads()) if self.batches.on_cpu else 1
        return batches * self.batches.max_batch_tokens

    @torch.inference_mode()
    def __call__(
        self, values: np.ndarray, offsets: np.ndarray, outputs: Collection[Output]
    ) -> WindowVectors:
        """Encode passages values[offsets[i]:offsets[i + 1]]; on CUDA return before they arrive.

        A passage that fails does not affect the others. Raises as `BatchRunner.run`.
        """
        window = _Window(values, offsets, self._heads, outputs, self._device)
        failures = self.batches.run(window.lengths, lambda rows: self._run_rows(window, rows))
        return window.encoded(failures)

    def _run_rows(self, window: _Window, rows: np.ndarray) -> None:
        tokens = TokenRows.of(window.offsets, rows)
        packed = pack(
            window.values[tokens.places_T],
            tokens.cu_seqlens,
            first_position=self._first_position,
            device=self._device,
        )
        if self._heads.need_first_only(window.outputs):
            vectors = self._heads.of_first(first_states(self.backbone, packed))
        else:
            vectors = self._heads(self.backbone(packed), packed, window.outputs)
        window.place(vectors, rows, tokens)


class _Window:
    """Collects the vectors of a window from its micro-batches."""

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
        self._heads, self._device = heads, device
        self._vectors: Vectors | None = None
        self._lock = threading.Lock()

    def place(self, vectors: Vectors, rows: np.ndarray, tokens: TokenRows) -> None:
        """Store the vectors of `rows` at their place in the window; call in inference mode."""
        if len(rows) == len(self.lengths) and (np.diff(rows) == 1).all():
            self._vectors = vectors
            return
        at_T = tokens.places_T - self.offsets[0]
        with_first = np.cumsum(self.lengths > 0)  # ColBERT omits the first token
        others = np.delete(at_T, tokens.cu_seqlens[:-1])
        at_C = others - np.repeat(with_first[rows], self.lengths[rows] - 1)
        at = (torch.from_numpy(places).to(self._device) for places in (rows, at_T, at_C))
        self._all().put(vectors, *at)

    def encoded(self, failures: dict[int, str]) -> WindowVectors:
        """Start the copy of all vectors to the host and return them."""
        vectors = self._all()
        if self._device.type != "cuda":
            return WindowVectors(vectors, failures)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        vectors = vectors.to_pinned()
        arrived.record(torch.cuda.current_stream(self._device))
        return WindowVectors(vectors, failures, arrived)

    def _all(self) -> Vectors:
        with self._lock:
            if self._vectors is None:
                passages = int((self.lengths > 0).sum())
                tokens = int(self.lengths.sum())
                self._vectors = self._heads.zeros(
                    len(self.lengths), tokens, tokens - passages, self.outputs, self._device
                )
            return self._vectors
