"""Causal, windowed, capped and grouped attention against plain scores under a dense mask."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.network import attention, capped_attention
from actors.network.capped_attention import AttentionRule, attend_flex
from actors.network.packing import PackedBatch, pack

HEADS, HEAD_DIM = 4, 8
LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=6)
RULES = st.builds(
    AttentionRule,
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 2, 5, 100]),
    softcap=st.sampled_from([None, 0.5, 50.0]),
    scale=st.sampled_from([0.3, 1.0]),
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def packed_of(lengths: list[int]) -> PackedBatch:
    offsets = np.cumsum([0, *lengths], dtype=np.int32)
    values = np.zeros(offsets[-1], dtype=np.int32)
    return pack(values, offsets, first_position=0, device=torch.device("cpu"))


def random_qkv(tokens: int, key_heads: int, seed: int) -> list[torch.Tensor]:
    """[1, heads, T, head_dim], and [1, key heads, T, head_dim] twice."""
    generator = torch.Generator().manual_seed(seed)
    heads = (HEADS, key_heads, key_heads)
    return [
        torch.randn((1, tokens, n, HEAD_DIM), generator=generator).transpose(1, 2) for n in heads
    ]


def reference(qkv: list[torch.Tensor], lengths: list[int], rule: AttentionRule) -> torch.Tensor:
    """[1, T, heads, head_dim], one token at a time."""
    query, key, value = (x[0] for x in qkv)
    groups = HEADS // len(key)
    out = torch.zeros(sum(lengths), HEADS, HEAD_DIM)
    start = 0
    for length in lengths:
        for i in range(length):
            seen = [
                j
                for j in range(length)
                if (j <= i or not rule.causal) and (rule.window is None or abs(i - j) < rule.window)
            ]
            rows = [start + j for j in seen]
            for head in range(HEADS):
                scores = key[head // groups, rows] @ query[head, start + i] * rule.scale
                if rule.softcap:
                    scores = (scores / rule.softcap).tanh() * rule.softcap
                out[start + i, head] = scores.softmax(0) @ value[head // groups, rows]
        start += length
    return out[None]


def module_of(rule: AttentionRule) -> torch.nn.Module:
    module = torch.nn.Module()
    module.is_causal = rule.causal
    return module


@settings(max_examples=80, deadline=None)
@given(
    lengths=LENGTHS, rule=RULES, key_heads=st.sampled_from([1, 2, 4]), seed=st.integers(0, 2**31)
)
def test_packed_attention_of_every_rule_equals_the_plain_one(
    lengths: list[int], rule: AttentionRule, key_heads: int, seed: int
) -> None:
    qkv = random_qkv(sum(lengths), key_heads, seed)
    ours, _ = attention.packed_attention(
        module_of(rule),
        *qkv,
        None,
        rule.scale,
        packed=packed_of(lengths),
        sliding_window=rule.window,
        softcap=rule.softcap,
    )
    torch.testing.assert_close(ours, reference(qkv, lengths, rule), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "rule",
    [
        AttentionRule(causal=True, window=None, softcap=0.5, scale=1.0),
        AttentionRule(causal=True, window=3, softcap=50.0, scale=0.3),
        AttentionRule(causal=False, window=2, softcap=None, scale=1.0),
    ],
)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("lengths", [[7], [1, 9, 9, 2, 30]])
def test_attend_flex_equals_the_plain_one(lengths: list[int], rule: AttentionRule) -> None:
    """The kernel for CUDA, run uncompiled: the rule it is given is the same."""
    qkv = random_qkv(sum(lengths), 2, 5)
    query, key, value = (x[0].transpose(0, 1) for x in qkv)
    ours = attend_flex(query, key, value, packed_of(lengths), rule)
    torch.testing.assert_close(ours[None], reference(qkv, lengths, rule), rtol=0, atol=1e-5)


def test_attend_capped_in_parts_equals_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [11, 11, 11]
    rule = AttentionRule(causal=True, window=4, softcap=2.0, scale=1.0)
    qkv = random_qkv(33, 2, 1)

    def attend() -> torch.Tensor:
        return attention.packed_attention(
            module_of(rule),
            *qkv,
            None,
            1.0,
            packed=packed_of(lengths),
            sliding_window=4,
            softcap=2.0,
        )[0]

    at_once = attend()
    monkeypatch.setattr(capped_attention, "_SCORES_AT_ONCE", 3 * HEADS * 11 * 2)
    torch.testing.assert_close(attend(), at_once, rtol=0, atol=1e-6)
