"""The packed layout of a micro-batch: concatenated tokens of its passages, without padding.

Shape suffixes: T tokens of the micro-batch, N passages, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch on its device."""

    input_ids_T: torch.Tensor
    """Token ids, int64 [T]."""
    position_ids_T: torch.Tensor
    """Positions, int64 [T]; each passage counts from the family's first position."""
    cu_seqlens: torch.Tensor
    """Cumulative sequence lengths, int32 [N + 1], on the device."""
    max_seqlen: int
    """Tokens of the longest passage."""
    runs: tuple[tuple[int, int, int], ...]
    """(first token, passages, tokens per passage) of each run of passages of equal length."""

    token_type_ids_T: torch.Tensor | None = None
    """Token types, int64 [T]; None if all are 0."""

    @property
    def lengths_N(self) -> torch.Tensor:
        """Number of tokens of each passage, int64 [N], on the device."""
        return self.cu_seqlens.diff().long()

    @property
    def firsts_N(self) -> torch.Tensor:
        """Index of the first token of each passage, int64 [N], on the device."""
        return self.cu_seqlens[:-1].long()


def pack(
    values: np.ndarray,
    offsets: np.ndarray,
    *,
    first_position: int,
    device: torch.device,
    token_types: np.ndarray | None = None,
) -> PackedBatch:
    """Lay out passages for one forward pass.

    `values` int32 [T] and `offsets` int [N + 1] are the buffers of an Arrow ListArray; the offsets
    of a sliced array start above zero. `token_types`: type of each token [T]; all 0 if None.
    """
    values = values[offsets[0] : offsets[-1]]
    cu_seqlens = (offsets - offsets[0]).astype(np.int32)
    lengths = np.diff(cu_seqlens)
    starts_T = np.repeat(cu_seqlens[:-1], lengths)
    positions = np.arange(len(values), dtype=np.int64) - starts_T + first_position

    def to_device(array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if device.type == "cuda":
            return tensor.pin_memory().to(device, non_blocking=True)
        return tensor.to(device)

    types = None if token_types is None or not token_types.any() else token_types
    return PackedBatch(
        input_ids_T=to_device(values.astype(np.int64)),
        position_ids_T=to_device(positions),
        cu_seqlens=to_device(cu_seqlens),
        max_seqlen=int(lengths.max()),
        runs=tuple(_runs(cu_seqlens)),
        token_type_ids_T=None if types is None else to_device(types.astype(np.int64)),
    )


def _runs(cu_seqlens: np.ndarray) -> Iterator[tuple[int, int, int]]:
    lengths = np.diff(cu_seqlens)
    borders = np.flatnonzero(np.diff(lengths)) + 1
    firsts = np.concatenate(([0], borders))
    lasts = np.concatenate((borders, [len(lengths)]))
    for first, last in zip(firsts, lasts, strict=True):
        yield int(cu_seqlens[first]), int(last - first), int(lengths[first])
