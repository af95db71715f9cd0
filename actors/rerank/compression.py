"""Averaging neighbouring states of passages, between two layers of the lightweight reranker.

CostWise (FlagEmbedding 1.3.5, inference/reranker/decoder_only/models/gemma_model.py): the states of
a passage, everything between the separator after the query and the one before the prompt, become
means of groups; positions are counted anew.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from actors.packing import PackedBatch, pack


@dataclasses.dataclass(frozen=True)
class Spans:
    """Where the passages of N packed pairs are."""

    starts: np.ndarray
    """int64 [N]: tokens of a pair before its passage."""
    tail: int
    """Tokens of every pair after its passage."""


def compressed(
    hidden_TH: torch.Tensor, packed: PackedBatch, spans: Spans, ratio: int
) -> tuple[torch.Tensor, PackedBatch]:
    """States and layout with `ratio` states of a passage in one; the last group by its own count.

    The starts of passages stay what they are.
    """
    lengths = packed.lengths_N.cpu().numpy()
    n_passage = lengths - spans.starts - spans.tail
    groups = -(-n_passage // ratio)
    new_lengths = spans.starts + groups + spans.tail
    # Each token's place within its pair, then in the new one.
    pair_T = np.repeat(np.arange(len(lengths)), lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    new_offsets = np.concatenate([[0], np.cumsum(new_lengths)])
    at_T = np.arange(offsets[-1]) - offsets[pair_T]
    start_T, n_T = spans.starts[pair_T], n_passage[pair_T]
    inside_T = at_T - start_T
    place_T = np.where(
        inside_T < 0,
        at_T,
        np.where(inside_T < n_T, start_T + inside_T // ratio, at_T - n_T + groups[pair_T]),
    )
    target_T = torch.from_numpy(place_T + new_offsets[pair_T]).to(hidden_TH.device)
    sums = hidden_TH.new_zeros((int(new_offsets[-1]), hidden_TH.shape[1]))
    sums.index_add_(0, target_T, hidden_TH)
    counts = torch.bincount(target_T, minlength=len(sums)).to(hidden_TH.dtype)
    layout = pack(
        np.zeros(int(new_offsets[-1]), np.int32),  # states go on, ids are used up
        new_offsets,
        first_position=0,
        device=hidden_TH.device,
    )
    return sums / counts[:, None], layout
