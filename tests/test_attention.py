"""Packed attention against plain softmax attention under a dense block-diagonal mask."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.network import attention
from actors.network.capped_attention import AttentionRule
from actors.network.packing import PackedBatch, pack

HEADS, HEAD_DIM = 3, 8
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """On matrices this small a second thread waits longer than it works."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def packed_of(lengths: list[int]) -> PackedBatch:
    offsets = np.cumsum([0, *lengths], dtype=np.int32)
    values = np.zeros(offsets[-1], dtype=np.int32)
    return pack(values, offsets, first_position=0, device=torch.device("cpu"))


def random_qkv(tokens: int, seed: int, *, strided: bool) -> list[torch.Tensor]:
    """[1, heads, T, head_dim] x 3; strided: transposed views, as transformers makes them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, tokens, HEADS, HEAD_DIM) if strided else (1, HEADS, tokens, HEAD_DIM)
    tensors = [torch.randn(shape, generator=generator) for _ in range(3)]
    return [x.transpose(1, 2) for x in tensors] if strided else tensors


def dense_mask_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    scaling: float,
) -> torch.Tensor:
    passage_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    apart_TT = passage_T[:, None] != passage_T[None, :]
    scores = (query @ key.transpose(-1, -2) * scaling).masked_fill(apart_TT, float("-inf"))
    return (scores.softmax(dim=-1) @ value).transpose(1, 2)


@settings(max_examples=60, deadline=None)
@given(
    lengths=LENGTHS,
    seed=st.integers(0, 2**31),
    strided=st.booleans(),
    scaling=st.sampled_from([None, 0.5, 1.0]),
)
def test_packed_attention_equals_dense_mask_attention(
    lengths: list[int], seed: int, strided: bool, scaling: float | None
) -> None:
    query, key, value = random_qkv(sum(lengths), seed, strided=strided)
    ours, weights = attention.packed_attention(
        torch.nn.Module(), query, key, value, None, scaling, packed=packed_of(lengths)
    )
    scale = scaling or 1 / math.sqrt(HEAD_DIM)
    torch.testing.assert_close(
        ours, dense_mask_attention(query, key, value, lengths, scale), rtol=0, atol=1e-5
    )
    assert ours.shape == (1, sum(lengths), HEADS, HEAD_DIM)
    assert weights is None


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 2**31), data=st.data())
def test_packed_attention_of_a_passage_ignores_all_others(
    lengths: list[int], seed: int, data: st.DataObject
) -> None:
    row = data.draw(st.integers(0, len(lengths) - 1))
    start = sum(lengths[:row])
    own = slice(start, start + lengths[row])
    query, key, value = random_qkv(sum(lengths), seed, strided=True)
    before, _ = attention.packed_attention(
        torch.nn.Module(), query, key, value, None, packed=packed_of(lengths)
    )
    foreign = torch.ones(sum(lengths), dtype=torch.bool)
    foreign[own] = False
    for tensor in (query, key, value):
        tensor[:, :, foreign] = float("nan")
    after, _ = attention.packed_attention(
        torch.nn.Module(), query, key, value, None, packed=packed_of(lengths)
    )
    assert torch.equal(after[:, own], before[:, own])
    assert after[:, foreign].isnan().all()


FULL = AttentionRule(causal=False, window=None, softcap=None, scale=0.4)


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 2**31))
def test_attend_of_first_tokens_only_equals_their_rows_of_all(
    lengths: list[int], seed: int
) -> None:
    packed = packed_of(lengths)
    query, key, value = (x[0].transpose(0, 1) for x in random_qkv(sum(lengths), seed, strided=True))
    expected = attention.attend(query, key, value, packed, FULL)[packed.firsts_N]
    found = attention.attend(query[packed.firsts_N], key, value, packed, FULL, first_only=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert found.is_contiguous()


@pytest.mark.parametrize("change", [{"causal": True}, {"window": 2}, {"softcap": 1.0}], ids=str)
def test_attend_of_first_tokens_by_a_rule_that_is_not_full_refused(change: dict[str, Any]) -> None:
    qkv = torch.zeros(3, HEADS, HEAD_DIM)
    rule = dataclasses.replace(FULL, **change)
    with pytest.raises(NotImplementedError, match="first tokens"):
        attention.attend(qkv[:1], qkv, qkv, packed_of([3]), rule, first_only=True)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    more=st.integers(0, 5),
    first_only=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_attend_in_bfloat16_equals_float32(
    lengths: list[int], more: int, first_only: bool, seed: int
) -> None:
    """Lengths that get masked keys behind them, and rows of no passage."""
    packed, tokens = packed_of(lengths), sum(lengths)
    wide = [x[0].transpose(0, 1) for x in random_qkv(tokens + more, seed, strided=True)]
    if first_only:
        wide[0] = wide[0][packed.firsts_N]
    exact = attention.attend(*wide, packed, FULL, first_only=first_only)
    wide[1][tokens:] = wide[2][tokens:] = 1e4  # of no passage: nobody attends to them
    found = attention.attend(*(x.bfloat16() for x in wide), packed, FULL, first_only=first_only)
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=4e-2)
    assert found.is_contiguous()
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("length", "causal", "dtype", "device", "masked"),
    [
        (63, False, torch.bfloat16, "cpu", True),
        (64, False, torch.bfloat16, "cpu", False),
        (1_039, False, torch.bfloat16, "cpu", False),
        (63, True, torch.bfloat16, "cpu", False),
        (63, False, torch.float32, "cpu", False),
        (63, False, torch.bfloat16, "meta", False),  # a GPU without flash attention, say
    ],
    ids=str,
)
def test_masked_keys_stand_behind_others_only_where_that_pays(
    length: int, causal: bool, dtype: torch.dtype, device: str, masked: bool
) -> None:
    rule = dataclasses.replace(FULL, causal=causal)
    query = torch.empty(1, dtype=dtype, device=device)
    assert attention._tail_costs(length, rule, query) is masked


def varlen_by_hand(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_queries: torch.Tensor,
    cu_keys: torch.Tensor,
    max_queries: int,
    max_keys: int,
    *,
    scale: float,
    window_size: tuple[int, int],
) -> torch.Tensor:
    """What torch's kernel says of itself; it runs on CUDA only."""
    assert cu_queries.dtype == cu_keys.dtype == torch.int32
    assert len(cu_queries) == len(cu_keys)
    assert (cu_queries[-1], cu_keys[-1]) == (len(query), len(key))
    assert (max_queries, max_keys) == (cu_queries.diff().max(), cu_keys.diff().max())
    assert window_size == (-1, -1)
    found = []
    for at in range(len(cu_queries) - 1):
        q = query[cu_queries[at] : cu_queries[at + 1]].transpose(0, 1)
        k, v = (x[cu_keys[at] : cu_keys[at + 1]].transpose(0, 1) for x in (key, value))
        found.append(((q @ k.transpose(-1, -2) * scale).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize("first_only", [False, True], ids=["all", "first"])
@pytest.mark.parametrize("lengths", [[1], [3, 3, 1], [1, 9, 2, 2]], ids=str)
def test_attend_tells_flash_attention_where_queries_and_keys_lie(
    lengths: list[int], first_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = packed_of(lengths)
    query, key, value = (x[0].transpose(0, 1) for x in random_qkv(sum(lengths), 0, strided=True))
    query = query[packed.firsts_N] if first_only else query
    expected = attention.attend(query, key, value, packed, FULL, first_only=first_only)
    monkeypatch.setattr(attention, "_has_flash", lambda _: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_by_hand)
    found = attention.attend(query, key, value, packed, FULL, first_only=first_only)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_packed_attention_with_a_mask_refused() -> None:
    query, key, value = random_qkv(4, 0, strided=True)
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    with pytest.raises(NotImplementedError, match="takes no mask"):
        attention.packed_attention(
            torch.nn.Module(), query, key, value, mask, packed=packed_of([4])
        )


def test_register_twice_leaves_packed_attention_known_to_transformers() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    attention.register()
    once = set(AttentionInterface().valid_keys()), set(AttentionMaskInterface().valid_keys())
    attention.register()
    twice = set(AttentionInterface().valid_keys()), set(AttentionMaskInterface().valid_keys())
    assert once == twice
    assert AttentionInterface()[attention.NAME] is attention.packed_attention
    assert AttentionMaskInterface()[attention.NAME](1, key="anything") is None
