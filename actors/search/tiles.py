"""Scores of some queries with some rows, on whichever device the vectors are on.

Formulas: actors/scoring.py. Shape suffixes: Q queries, B rows, T tokens, D dimension.
"""

from __future__ import annotations

import threading
import warnings

import numpy as np
import torch

from actors.micro_batches import micro_batches

# Both bound the scores of token pairs that are held at once: 16 MB.
_PASSAGE_TOKENS = 4_096
_QUERY_TOKENS = 1_024


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """The same memory, also where it may only be read: nothing here writes to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch cannot say "read only"
        return torch.from_numpy(array)


class Floats:
    """Tensors as float32, one after the other in the same memory, of each thread its own.

    Fresh memory for each block costs more than the cast: the system clears every page of it.
    """

    def __init__(self) -> None:
        self._own = threading.local()

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """The tensor as float32; what came before is overwritten."""
        if values.dtype == torch.float32:
            return values
        memory: torch.Tensor | None = getattr(self._own, "memory", None)
        if memory is None or memory.numel() < values.numel() or memory.device != values.device:
            memory = self._own.memory = torch.empty(values.numel(), device=values.device)
        return memory[: values.numel()].view(values.shape).copy_(values)


def max_sim_tile(
    query_TD: torch.Tensor,
    query_offsets: np.ndarray,
    tokens_TD: torch.Tensor,
    offsets: np.ndarray,
    floats: Floats,
) -> torch.Tensor:
    """MaxSim float32 [Q, B]: over a query's tokens, the mean of the best inner product in the row.

    query_TD float32, tokens_TD of any floating type; offsets [Q + 1] and [B + 1] into them, from 0.
    A row without tokens scores 0.
    """
    scores_QB = query_TD.new_empty(len(query_offsets) - 1, len(offsets) - 1)
    for start, stop in micro_batches(offsets, _PASSAGE_TOKENS):
        block_TD = floats.of(tokens_TD[offsets[start] : offsets[stop]])
        own = offsets[start : stop + 1] - offsets[start]
        for begin, end in micro_batches(query_offsets, _QUERY_TOKENS):
            block = query_TD[query_offsets[begin] : query_offsets[end]] @ block_TD.T
            best_TB = segments(block, own, "max")
            queries = query_offsets[begin : end + 1] - query_offsets[begin]
            sums_QB = segments(best_TB.T, queries, "sum").T
            lengths = torch.from_numpy(np.maximum(np.diff(queries), 1)).to(sums_QB)
            scores_QB[begin:end, start:stop] = sums_QB / lengths[:, None]
    return scores_QB


def segments(values: torch.Tensor, offsets: np.ndarray, reduce: str) -> torch.Tensor:
    """Maximum or sum over each run of columns: [A, offsets[-1]] to [A, len(offsets) - 1].

    0 of an empty run. On a CPU numpy's reduceat takes half of the time segment_reduce does.
    """
    if values.device.type != "cpu":
        return segments_on_device(values, offsets, reduce)
    ufunc = {"max": np.maximum, "sum": np.add}[reduce]
    full = np.diff(offsets) > 0
    if full.all():
        found = ufunc.reduceat(values.numpy(), offsets[:-1], axis=1)
        return torch.from_numpy(found)
    found = np.zeros((len(values), len(full)), dtype=np.float32)
    if full.any():
        found[:, full] = ufunc.reduceat(values.numpy(), offsets[:-1][full], axis=1)
    return torch.from_numpy(found)


def segments_on_device(values: torch.Tensor, offsets: np.ndarray, reduce: str) -> torch.Tensor:
    """As `segments`, without leaving the device."""
    places = torch.from_numpy(offsets).to(values.device)
    found = torch.segment_reduce(
        values.T.contiguous(), reduce, offsets=places, axis=0, initial=None
    ).T
    empty = (places.diff() == 0)[None, :]
    return found.masked_fill(empty, 0.0)
