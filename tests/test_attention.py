"""Packed passages, and attention by every rule against plain softmax attention."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packed_inputs import CLOSE, LENGTHS, SEEDS, packed_of

from actors.network import attention, capped_attention
from actors.network.capped_attention import AttentionRule, attend_flex
from actors.network.micro_batches import TokenRows, micro_batches, next_stop
from actors.network.packing import pack

# --- layout ---------------------------------------------------------------------------------------


PASSAGES = st.lists(
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9), min_size=1, max_size=12
)


@settings(deadline=None)
@given(passages=PASSAGES, first_position=st.integers(0, 5), data=st.data())
def test_pack_passages_of_a_column_lie_end_to_end_and_each_counts_its_positions(
    passages, first_position, data
):
    start = data.draw(st.integers(0, len(passages) - 1))
    stop = data.draw(st.integers(start + 1, len(passages)))
    column = pa.array(passages, pa.list_(pa.int32()))  # its two buffers, as the encoder reads them
    values, offsets = column.values.to_numpy(), column.offsets.to_numpy()[start : stop + 1]
    packed = pack(values, offsets, first_position=first_position, device=torch.device("cpu"))
    lengths = [len(passage) for passage in passages[start:stop]]
    positions = [range(first_position, first_position + n) for n in lengths]
    assert packed.input_ids_T.tolist() == list(itertools.chain(*passages[start:stop]))
    assert packed.position_ids_T.tolist() == list(itertools.chain(*positions))
    assert packed.cu_seqlens.tolist() == [0, *itertools.accumulate(lengths)]
    assert packed.lengths_N.tolist() == lengths
    assert packed.max_seqlen == max(lengths)
    # What torch's kernels take.
    assert packed.input_ids_T.dtype == packed.position_ids_T.dtype == torch.int64
    assert (packed.lengths_N.dtype, packed.cu_seqlens.dtype) == (torch.int64, torch.int32)
    # Runs of passages of one length are maximal and cover every passage.
    expected, first = [], 0
    for length, same in itertools.groupby(lengths):
        expected.append((first, n := len(list(same)), length))
        first += n * length
    assert [tuple(run) for run in packed.runs] == expected


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), max_size=30),
    max_tokens=st.integers(1, 100),
    first=st.integers(0, 50),
)
@example(lengths=[4, 100, 4, 4], max_tokens=8, first=0)  # one over the budget gets its own
def test_micro_batches_partition_rows_within_budget_and_waste_none(lengths, max_tokens, first):
    offsets = np.cumsum([first, *lengths], dtype=np.int32)
    batches = list(micro_batches(offsets, max_tokens))
    rows = [row for start, stop in batches for row in range(start, stop)]
    assert rows == list(range(len(lengths)))
    for start, stop in batches:
        assert stop == next_stop(offsets, start, max_tokens)
        tokens = sum(lengths[start:stop])
        assert tokens <= max_tokens or stop - start == 1
        # Greedy: the next passage would not have fitted.
        assert stop == len(lengths) or tokens + lengths[stop] > max_tokens


@settings(deadline=None)
@given(passages=PASSAGES, data=st.data())
def test_token_rows_are_the_tokens_of_rows_in_the_order_given(passages, data):
    column = pa.array([[7, 7, 7], *passages], pa.list_(pa.int32()))
    rows = data.draw(st.lists(st.integers(1, len(passages)), min_size=1, max_size=8))
    tokens = TokenRows.of(column.offsets.to_numpy(), np.array(rows))
    chosen = [passages[row - 1] for row in rows]
    assert column.values.to_numpy()[tokens.places_T].tolist() == list(itertools.chain(*chosen))
    assert np.diff(tokens.cu_seqlens).tolist() == [len(passage) for passage in chosen]


# --- attention ------------------------------------------------------------------------------------


HEADS, HEAD_DIM = 4, 8
FULL = AttentionRule(causal=False, window=None, softcap=None, scale=0.4)
RULES = st.builds(
    AttentionRule,
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 2, 5, 100]),
    softcap=st.sampled_from([None, 0.5, 50.0]),
    scale=st.sampled_from([0.3, 1.0, HEAD_DIM**-0.5]),
)


def random_qkv(tokens: int, seed: int, key_heads: int = HEADS) -> list[torch.Tensor]:
    """[1, heads, T, head_dim], and [1, key heads, T, head_dim] twice: views, as transformers'."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, tokens, heads, HEAD_DIM) for heads in (HEADS, key_heads, key_heads)]
    return [torch.randn(shape, generator=generator).transpose(1, 2) for shape in shapes]


def flat_qkv(tokens: int, seed: int, key_heads: int = HEADS) -> list[torch.Tensor]:
    """[T, heads, head_dim] three times."""
    return [x[0].transpose(0, 1) for x in random_qkv(tokens, seed, key_heads)]


def reference(qkv: list[torch.Tensor], lengths: list[int], rule: AttentionRule) -> torch.Tensor:
    """[1, T, heads, head_dim], one token at a time."""
    query, key, value = (x[0] for x in qkv)
    groups = HEADS // len(key)
    out = torch.zeros(sum(lengths), HEADS, HEAD_DIM)
    start = 0
    for length in lengths:
        for i in range(length):
            rows = [
                start + j
                for j in range(length)
                if (j <= i or not rule.causal) and (rule.window is None or abs(i - j) < rule.window)
            ]
            for head in range(HEADS):
                scores = key[head // groups, rows] @ query[head, start + i] * rule.scale
                if rule.softcap:
                    scores = (scores / rule.softcap).tanh() * rule.softcap
                out[start + i, head] = scores.softmax(0) @ value[head // groups, rows]
        start += length
    return out[None]


def packed_attention(qkv: Any, lengths: list[int], rule: AttentionRule) -> torch.Tensor:
    module = torch.nn.Module()
    module.is_causal = rule.causal
    scale = None if rule.scale == HEAD_DIM**-0.5 else rule.scale  # as transformers gives it
    how = {"packed": packed_of(lengths), "sliding_window": rule.window, "softcap": rule.softcap}
    found, weights = attention.packed_attention(module, *qkv, None, scale, **how)
    assert weights is None
    return found


@settings(max_examples=100, deadline=None)
@given(
    lengths=LENGTHS,
    rule=RULES,
    key_heads=st.sampled_from([1, 2, 4]),
    strided=st.booleans(),
    seed=SEEDS,
)
def test_packed_attention_of_every_rule_equals_the_plain_one(
    lengths, rule, key_heads, strided, seed
):
    qkv = random_qkv(sum(lengths), seed, key_heads)
    ours = packed_attention(qkv if strided else [x.contiguous() for x in qkv], lengths, rule)
    assert ours.shape == (1, sum(lengths), HEADS, HEAD_DIM)
    torch.testing.assert_close(ours, reference(qkv, lengths, rule), **CLOSE)


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, seed=SEEDS, data=st.data())
def test_packed_attention_of_a_passage_ignores_all_others(lengths, seed, data):
    row = data.draw(st.integers(0, len(lengths) - 1))
    own = slice(sum(lengths[:row]), sum(lengths[: row + 1]))
    qkv = random_qkv(sum(lengths), seed)
    before = packed_attention(qkv, lengths, FULL)
    foreign = torch.ones(sum(lengths), dtype=torch.bool)
    foreign[own] = False
    for tensor in qkv:
        tensor[:, :, foreign] = float("nan")
    after = packed_attention(qkv, lengths, FULL)
    assert torch.equal(after[:, own], before[:, own])
    assert after[:, foreign].isnan().all()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    "rule",
    [
        AttentionRule(causal=True, window=None, softcap=0.5, scale=1.0),
        AttentionRule(causal=True, window=3, softcap=50.0, scale=0.3),
        AttentionRule(causal=False, window=2, softcap=None, scale=1.0),
    ],
)
def test_attend_flex_equals_the_plain_one(rule):
    """The kernel for CUDA, run uncompiled: the rule it is given is the same."""
    for lengths in ([7], [1, 9, 9, 2, 30]):
        ours = attend_flex(*flat_qkv(sum(lengths), 5, 2), packed_of(lengths), rule)
        expected = reference(random_qkv(sum(lengths), 5, 2), lengths, rule)
        torch.testing.assert_close(ours[None], expected, **CLOSE)


def test_attend_capped_in_parts_equals_at_once(monkeypatch):
    rule = AttentionRule(causal=True, window=4, softcap=2.0, scale=1.0)
    qkv = random_qkv(33, 1, 2)
    at_once = packed_attention(qkv, [11, 11, 11], rule)
    monkeypatch.setattr(capped_attention, "_SCORES_AT_ONCE", 3 * HEADS * 11 * 2)
    in_parts = packed_attention(qkv, [11, 11, 11], rule)
    torch.testing.assert_close(in_parts, at_once, rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    more=st.integers(0, 5),
    first_only=st.booleans(),
    seed=SEEDS,
)
def test_attend_of_first_tokens_or_in_bfloat16_equals_that_of_all(lengths, more, first_only, seed):
    """Lengths that get masked keys behind them, and rows of no passage."""
    packed, tokens = packed_of(lengths), sum(lengths)
    qkv = flat_qkv(tokens + more, seed)
    exact = attention.attend(*(x[:tokens] for x in qkv), packed, FULL)
    if first_only:
        qkv[0], exact = qkv[0][packed.firsts_N], exact[packed.firsts_N]
        found = attention.attend(*qkv, packed, FULL, first_only=True)
        torch.testing.assert_close(found, exact, **CLOSE)
        assert found.is_contiguous()
    qkv[1][tokens:] = qkv[2][tokens:] = 1e4  # of no passage: nobody attends to them
    found = attention.attend(*(x.bfloat16() for x in qkv), packed, FULL, first_only=first_only)
    torch.testing.assert_close(found[: len(exact)].float(), exact, rtol=0, atol=4e-2)
    assert found.is_contiguous()
    assert found.isfinite().all()


def varlen_by_hand(
    query, key, value, cu_queries, cu_keys, max_queries, max_keys, *, scale, window_size
):
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
def test_attend_tells_flash_attention_where_queries_and_keys_lie(lengths, first_only, monkeypatch):
    packed = packed_of(lengths)
    query, key, value = flat_qkv(sum(lengths), 0)
    query = query[packed.firsts_N] if first_only else query
    expected = attention.attend(query, key, value, packed, FULL, first_only=first_only)
    monkeypatch.setattr(attention, "_has_flash", lambda _: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_by_hand)
    found = attention.attend(query, key, value, packed, FULL, first_only=first_only)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_attention_that_is_not_computed_is_refused():
    qkv = torch.zeros(3, HEADS, HEAD_DIM)
    for change in ({"causal": True}, {"window": 2}, {"softcap": 1.0}):
        rule = dataclasses.replace(FULL, **change)
        with pytest.raises(NotImplementedError, match="expected a rule with only a scale"):
            attention.attend(qkv[:1], qkv, qkv, packed_of([3]), rule, first_only=True)
    mask, packed = torch.ones(1, 1, 4, 4, dtype=torch.bool), packed_of([4])
    with pytest.raises(NotImplementedError, match="expected no attention_mask"):
        attention.packed_attention(torch.nn.Module(), *random_qkv(4, 0), mask, packed=packed)


def test_register_twice_leaves_packed_attention_known_to_transformers():
    from transformers import AttentionInterface, AttentionMaskInterface

    names = []
    for _ in range(2):
        attention.register()
        interfaces = (AttentionInterface(), AttentionMaskInterface())
        names.append([set(interface.valid_keys()) for interface in interfaces])
    assert names[0] == names[1]
    assert AttentionInterface()[attention.NAME] is attention.packed_attention
    assert AttentionMaskInterface()[attention.NAME](1, key="anything") is None
