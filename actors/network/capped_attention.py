"""Attention with scores capped by tanh (Gemma2) or with a window, which other kernels lack.

Follows transformers' eager Gemma2: cap, then mask, then softmax in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from actors.network.packing import PackedBatch

# Most (query, key) scores of all heads computed at once: 256 MB in float32.
_SCORES_AT_ONCE = 1 << 26


@dataclass(frozen=True)
class AttentionRule:
    """Which tokens of its passage a token attends to, and how scores become weights."""

    causal: bool
    scale: float
    window: int | None = None
    """Tokens at this distance or farther are masked; None for no window."""
    softcap: float | None = None
    """Bound of scores: softcap * tanh(score / softcap); None for no bound."""


def attend_capped(
    query_NHLD: torch.Tensor,
    key_NKLD: torch.Tensor,
    value_NKLD: torch.Tensor,
    rule: AttentionRule,
) -> torch.Tensor:
    """Compute attention [N, H, L, D] over passages of equal length, in blocks of queries."""
    n, heads, length, _ = query_NHLD.shape
    groups = heads // key_NKLD.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key_NKLD, value_NKLD))
    positions = torch.arange(length, device=query_NHLD.device)
    step = max(_SCORES_AT_ONCE // (n * heads * length), 1)
    parts = []
    for start in range(0, length, step):
        query = query_NHLD[:, :, start : start + step]
        scores = torch.matmul(query, key.transpose(2, 3)) * rule.scale
        if rule.softcap is not None:
            scores = torch.tanh(scores / rule.softcap) * rule.softcap
        distance = positions[start : start + step, None] - positions[None]
        scores = scores.masked_fill(~_sees(distance, rule), torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        parts.append(torch.matmul(weights, value))
    return torch.cat(parts, dim=2)


def attend_flex(
    query_THD: torch.Tensor,
    key_TKD: torch.Tensor,
    value_TKD: torch.Tensor,
    packed: PackedBatch,
    rule: AttentionRule,
) -> torch.Tensor:
    """Compute attention [T, H, D] over a packed micro-batch with flex_attention."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    tokens = len(query_THD)
    passage_T = torch.repeat_interleave(
        torch.arange(len(packed.lengths_N), device=query_THD.device),
        packed.lengths_N,
        output_size=tokens,
    )

    def visible(_b: Any, _h: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (passage_T[q] == passage_T[k]) & _sees(q - k, rule)

    def capped(score: torch.Tensor, *_: Any) -> torch.Tensor:
        return score if rule.softcap is None else torch.tanh(score / rule.softcap) * rule.softcap

    attend: Callable[..., torch.Tensor] = flex_attention
    if query_THD.is_cuda:  # uncompiled, it materialises the whole score matrix
        attend = _compiled(attend)
    mask = create_block_mask(visible, None, None, tokens, tokens, device=str(query_THD.device))
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (query_THD, key_TKD, value_TKD))
    attended = attend(
        q,
        k,
        v,
        score_mod=capped,
        block_mask=mask,
        scale=rule.scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return attended[0].transpose(0, 1)


def _sees(distance: torch.Tensor, rule: AttentionRule) -> torch.Tensor:
    """Return whether a query attends to a key `distance` tokens before it (negative: after)."""
    seen = torch.ones_like(distance, dtype=torch.bool)
    if rule.causal:
        seen = distance >= 0
    if rule.window is not None:
        seen = seen & (distance.abs() < rule.window)
    return seen


@functools.cache
def _compiled(kernel: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return torch.compile(kernel, dynamic=True)
