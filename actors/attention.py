"""Packed (padding-free) self-attention, registered with transformers under the name "packed".

A passage's tokens attend to that passage alone. Half precision on CUDA: torch's variable-length
flash attention; anything else: scaled_dot_product_attention per run of equally long passages.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from actors.packing import PackedBatch

NAME = "packed"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    packed: PackedBatch,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over one packed micro-batch.

    query, key, value: [1, heads, T, head_dim], as transformers' modules hand them over.
    Returns ([1, T, heads, head_dim], None). Signature: transformers' AttentionInterface.
    """
    if attention_mask is not None or getattr(module, "is_causal", False):
        raise NotImplementedError("packed attention is bidirectional and takes no mask")
    query_THD, key_THD, value_THD = (x[0].transpose(0, 1) for x in (query, key, value))
    attend = _attend_varlen if _has_flash(query) else _attend_runs
    return attend(query_THD, key_THD, value_THD, packed, scaling).unsqueeze(0), None


def _has_flash(query: torch.Tensor) -> bool:
    """Flash attention is for half precision on Ampere and later."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    return query.is_cuda and half and torch.cuda.get_device_capability(query.device) >= (8, 0)


def _attend_varlen(
    query_THD: torch.Tensor,
    key_THD: torch.Tensor,
    value_THD: torch.Tensor,
    packed: PackedBatch,
    scaling: float | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    attended = varlen_attn(
        query_THD,
        key_THD,
        value_THD,
        packed.cu_seqlens,
        packed.cu_seqlens,
        packed.max_seqlen,
        packed.max_seqlen,
        scale=scaling,
    )
    assert isinstance(attended, torch.Tensor)  # a tuple only when auxiliary outputs are asked for
    return attended


def _attend_runs(
    query_THD: torch.Tensor,
    key_THD: torch.Tensor,
    value_THD: torch.Tensor,
    packed: PackedBatch,
    scaling: float | None,
) -> torch.Tensor:
    out_THD = torch.empty(query_THD.shape, dtype=query_THD.dtype, device=query_THD.device)
    for start, passages, length in packed.runs:
        stop = start + passages * length
        shape = (passages, length, *query_THD.shape[1:])
        q, k, v = (
            x_THD[start:stop].view(shape).transpose(1, 2)
            for x_THD in (query_THD, key_THD, value_THD)
        )
        attended = F.scaled_dot_product_attention(q, k, v, scale=scaling)
        out_THD[start:stop].view(shape).copy_(attended.transpose(1, 2))
    return out_THD


def register() -> None:
    """Make "packed" known to transformers; safe to call again."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)


def _no_mask(*_: Any, **__: Any) -> None:
    """The boundaries travel as cu_seqlens: no mask is ever built."""
