"""Packed (padding-free) self-attention, registered with transformers under the name "packed".

A token attends to tokens of its own passage, in causal models only to earlier ones. Half precision
on CUDA uses torch's variable-length flash attention; otherwise scaled_dot_product_attention runs
once for each run of passages of equal length. capped_attention.py has the kernels for capped scores
(Gemma2) and for windows shorter than a passage.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch.nn import functional as F

from actors.network.capped_attention import AttentionRule, attend_capped, attend_flex
from actors.network.packing import PackedBatch

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
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention over one packed micro-batch; an AttentionInterface of transformers.

    `query`: [1, heads, T, head_dim]; `key` and `value`: [1, key heads, T, head_dim].
    `sliding_window` and `softcap` come from transformers' modules. Returns
    ([1, T, heads, head_dim], None).
    """
    if attention_mask is not None:
        raise NotImplementedError("packed attention: expected no attention_mask, got one")
    rule = AttentionRule(
        causal=bool(getattr(module, "is_causal", False)),
        window=sliding_window,
        softcap=softcap,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
    )
    query_THD, key_TKD, value_TKD = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend(query_THD, key_TKD, value_TKD, packed, rule).unsqueeze(0), None


def attend(
    query_THD: torch.Tensor,
    key_TKD: torch.Tensor,
    value_TKD: torch.Tensor,
    packed: PackedBatch,
    rule: AttentionRule,
    *,
    first_only: bool = False,
) -> torch.Tensor:
    """Compute attention over one packed micro-batch with the kernel for its device and type.

    `query`: [T, heads, head_dim]; `key` and `value`: [T, key heads, head_dim]. Returns a contiguous
    tensor of the shape of `query`. On a CPU, finite padding rows may follow the rows of `packed`;
    no token attends to them, and their results are finite. `first_only`: `query` is
    [N, heads, head_dim], the first token of each passage; `rule` must only have a scale.
    """
    if first_only and (rule.causal, rule.window, rule.softcap) != (False, None, None):
        raise NotImplementedError(f"first_only: expected a rule with only a scale, got {rule}")
    if query_THD.is_cuda and rule.softcap is not None:
        return attend_flex(query_THD, key_TKD, value_TKD, packed, rule)
    kernel = _attend_varlen if _has_flash(query_THD) else _attend_runs
    return kernel(query_THD, key_TKD, value_TKD, packed, rule, first_only)


def _has_flash(query: torch.Tensor) -> bool:
    """Return whether flash attention supports the tensor: half precision, Ampere or later."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    return torch.cuda.get_device_capability(query.device) >= (8, 0)


def _attend_varlen(
    query_THD: torch.Tensor,
    key_TKD: torch.Tensor,
    value_TKD: torch.Tensor,
    packed: PackedBatch,
    rule: AttentionRule,
    first_only: bool,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    groups = query_THD.shape[1] // key_TKD.shape[1]
    grouped: dict[str, Any] = {}
    if groups > 1 and _varlen_groups():
        grouped = {"enable_gqa": True}
    elif groups > 1:
        key_TKD, value_TKD = (x.repeat_interleave(groups, dim=1) for x in (key_TKD, value_TKD))
    cu_queries, max_queries = packed.cu_seqlens, packed.max_seqlen
    if first_only:  # each query is a sequence of length 1
        cu_queries = torch.arange(len(cu_queries), dtype=torch.int32, device=cu_queries.device)
        max_queries = 1
    # The kernel's window excludes the token itself; the rule's window includes it.
    side = -1 if rule.window is None else rule.window - 1
    attended = varlen_attn(
        query_THD,
        key_TKD,
        value_TKD,
        cu_queries,
        packed.cu_seqlens,
        max_queries,
        packed.max_seqlen,
        scale=rule.scale,
        window_size=(side, 0 if rule.causal else side),
        **grouped,
    )
    assert isinstance(attended, torch.Tensor)  # a tuple only with auxiliary outputs
    return attended


@functools.cache
def _varlen_groups() -> bool:
    """Return whether this torch's varlen_attn supports grouped-query attention."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def _attend_runs(
    query_THD: torch.Tensor,
    key_TKD: torch.Tensor,
    value_TKD: torch.Tensor,
    packed: PackedBatch,
    rule: AttentionRule,
    first_only: bool,
) -> torch.Tensor:
    if not first_only and _is_alone(query_THD, packed, rule):
        return _attend_alone(query_THD, key_TKD, value_TKD, packed, rule)
    out_THD = torch.empty(query_THD.shape, dtype=query_THD.dtype, device=query_THD.device)
    asked = 0  # queries before the current run
    for start, passages, length in packed.runs:
        queries = slice(asked, asked := asked + passages * (1 if first_only else length))
        tokens = slice(start, start + passages * length)
        q, k, v = (
            x.view(passages, -1, *x.shape[1:]).transpose(1, 2)
            for x in (query_THD[queries], key_TKD[tokens], value_TKD[tokens])
        )
        if _is_plain(rule, length):
            mask = None
            if _tail_costs(length, rule, q):
                k, v, mask = _with_whole_vectors(k, v)
            attended = _attend_plainly(q, k, v, rule, mask)
        else:
            attended = attend_capped(q, k, v, rule)
        shape = (passages, -1, *query_THD.shape[1:])
        out_THD[queries].view(shape).copy_(attended.transpose(1, 2))
    out_THD[asked:] = 0
    return out_THD


def _is_plain(rule: AttentionRule, length: int) -> bool:
    """Return whether passages of this length need neither a window nor a cap."""
    return rule.softcap is None and (rule.window is None or length <= rule.window)


def _attend_plainly(
    query_NHLD: torch.Tensor,
    key_NKLD: torch.Tensor,
    value_NKLD: torch.Tensor,
    rule: AttentionRule,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Compute attention [N, H, L, D] over passages of equal length with torch's kernel."""
    return F.scaled_dot_product_attention(
        query_NHLD,
        key_NKLD,
        value_NKLD,
        attn_mask=mask,
        scale=rule.scale,
        is_causal=rule.causal and query_NHLD.shape[2] > 1,
        enable_gqa=query_NHLD.shape[1] != key_NKLD.shape[1],
    )


def _is_alone(query_THD: torch.Tensor, packed: PackedBatch, rule: AttentionRule) -> bool:
    """Return whether the rows are one passage, with padding rows only if they can be masked."""
    rows, length = len(query_THD), packed.max_seqlen
    if len(packed.runs) > 1 or packed.runs[0][1] > 1 or not _is_plain(rule, length):
        return False
    if rows == length:
        return not _tail_costs(length, rule, query_THD)
    return not rule.causal and rows <= _LONGEST_TAILED


def _attend_alone(
    query_THD: torch.Tensor,
    key_TKD: torch.Tensor,
    value_TKD: torch.Tensor,
    packed: PackedBatch,
    rule: AttentionRule,
) -> torch.Tensor:
    """Compute attention over one passage without a copy, which costs most for a short query."""
    rows, length = len(query_THD), packed.max_seqlen
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (query_THD, key_TKD, value_TKD))
    mask = None if rows == length else _mask(length, rows, q.dtype)
    return _attend_plainly(q, k, v, rule, mask)[0].transpose(0, 1).contiguous()


_LANES = 16
_COSTLY_TAIL = 6
_LONGEST_TAILED = 1_024


def _tail_costs(length: int, rule: AttentionRule, query: torch.Tensor) -> bool:
    """Return whether padding the keys to a multiple of 16 with a mask is faster.

    torch's CPU kernel vectorises scores and computes the remainder of a row one by one: in bfloat16
    rows of 63 keys take twice as long as rows of 64. The mask does not pay for a remainder below
    six, for rows of more than a thousand keys, or in float32.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or rule.causal:
        return False
    return length <= _LONGEST_TAILED and length % _LANES >= _COSTLY_TAIL


def _with_whole_vectors(
    key_NKLD: torch.Tensor, value_NKLD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pad keys and values with zeros to a multiple of 16; return them and the mask."""
    n, heads, length, size = key_NKLD.shape
    padded = -(-length // _LANES) * _LANES
    both = key_NKLD.new_empty(2, n, padded, heads, size).transpose(2, 3)
    both[:, :, :, length:] = 0
    both[0, :, :, :length] = key_NKLD
    both[1, :, :, :length] = value_NKLD
    return both[0], both[1], _mask(length, padded, key_NKLD.dtype)


@functools.cache
def _mask(length: int, padded: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the mask [1, 1, 1, padded] to add to scores: 0 for keys, -inf for padding."""
    mask = torch.zeros(1, 1, 1, padded, dtype=dtype)
    mask[..., length:] = float("-inf")
    return mask


def register() -> None:
    """Register "packed" with transformers; may be called repeatedly."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    # Boundaries are passed as cu_seqlens, so no mask is built.
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
