"""Attention that other kernels lack: scores capped by tanh (Gemma2), windows within a passage.

Both follow transformers' eager Gemma2: cap, then mask, then softmax in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from actors.network.packing import PackedBatch

# Scores are made for so many (query, key) pairs of all heads at once: 256 MB in float32.
_SCORES_AT_ONCE = 1 << 26


@dataclass(frozen=True)
class AttentionRule:
    """Which tokens of its passage a token sees, and how scores become weights."""

    causal: bool
    scale: float
    window: int | None = None
    """A token sees those less than so many away (itself is 0 away)."""
    softcap: float | None = None
    """Scores are bent into (-softcap, softcap) by tanh."""


def attend_capped(
    query_NHLD: torch.Tensor,
    key_NKLD: torch.Tensor,
    value_NKLD: torch.Tensor,
    rule: AttentionRule,
) -> torch.Tensor:
    """Plain attention over passages of one length, some queries at a time. Returns [N, H, L, D]."""
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
    """flex_attention over a whole packed micro-batch. Returns [T, H, D]."""
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
    if query_THD.is_cuda:  # without compilation it builds every score
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
    """Whether a query sees a key so many tokens before it (negative: after it)."""
    seen = torch.ones_like(distance, dtype=torch.bool)
    if rule.causal:
        seen = distance >= 0
    if rule.window is not None:
        seen = seen & (distance.abs() < rule.window)
    return seen


@functools.cache
def _compiled(kernel: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return torch.compile(kernel, dynamic=True)
