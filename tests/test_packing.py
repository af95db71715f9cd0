"""The packed layout, checked against plain lists of passages."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.network.micro_batches import TokenRows, micro_batches, next_stop
from actors.network.packing import pack

CPU = torch.device("cpu")
PASSAGES = st.lists(
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=12), min_size=1, max_size=12
)


def buffers(passages: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """An Arrow column's own two buffers, as the encoder reads them."""
    column = pa.array(passages, pa.list_(pa.int32()))
    return column.values.to_numpy(), column.offsets.to_numpy()


def offsets_of(lengths: list[int], first: int = 0) -> np.ndarray:
    return np.cumsum([first, *lengths], dtype=np.int32)


@settings(deadline=None)
@given(passages=PASSAGES, first_position=st.integers(0, 5))
def test_pack_passages_lie_end_to_end_and_each_counts_its_positions(
    passages: list[list[int]], first_position: int
) -> None:
    packed = pack(*buffers(passages), first_position=first_position, device=CPU)
    lengths = [len(passage) for passage in passages]
    positions = [range(first_position, first_position + n) for n in lengths]
    assert packed.input_ids_T.tolist() == list(itertools.chain(*passages))
    assert packed.position_ids_T.tolist() == list(itertools.chain(*positions))
    assert packed.cu_seqlens.tolist() == [0, *itertools.accumulate(lengths)]
    assert packed.lengths_N.tolist() == lengths
    assert packed.max_seqlen == max(lengths)


def test_pack_types_are_what_torch_kernels_take() -> None:
    packed = pack(*buffers([[5, 6], [7]]), first_position=2, device=CPU)
    assert packed.input_ids_T.dtype == packed.position_ids_T.dtype == torch.int64
    assert packed.lengths_N.dtype == torch.int64
    assert packed.cu_seqlens.dtype == torch.int32


@settings(deadline=None)
@given(passages=PASSAGES, data=st.data())
def test_pack_rows_of_a_larger_column_equals_packing_them_alone(
    passages: list[list[int]], data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(passages) - 1))
    stop = data.draw(st.integers(start + 1, len(passages)))
    values, offsets = buffers(passages)
    part = pack(values, offsets[start : stop + 1], first_position=0, device=CPU)
    alone = pack(*buffers(passages[start:stop]), first_position=0, device=CPU)
    for tensor in ("input_ids_T", "position_ids_T", "cu_seqlens"):
        assert torch.equal(getattr(part, tensor), getattr(alone, tensor))
    assert (part.max_seqlen, part.runs) == (alone.max_seqlen, alone.runs)


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 3), min_size=1, max_size=20))
def test_pack_runs_are_maximal_and_cover_every_passage(lengths: list[int]) -> None:
    values = np.zeros(sum(lengths), dtype=np.int32)
    runs = pack(values, offsets_of(lengths), first_position=0, device=CPU).runs
    covered = [length for _, passages, length in runs for _ in range(passages)]
    assert covered == lengths
    assert [first for first, _, _ in runs] == [
        0,
        *itertools.accumulate(passages * length for _, passages, length in runs[:-1]),
    ]
    assert all(a[2] != b[2] for a, b in itertools.pairwise(runs))


LENGTHS = st.lists(st.integers(1, 40), max_size=30)


@settings(deadline=None)
@given(lengths=LENGTHS, max_tokens=st.integers(1, 100), first=st.integers(0, 50))
def test_micro_batches_partition_rows_within_budget_and_waste_none(
    lengths: list[int], max_tokens: int, first: int
) -> None:
    batches = list(micro_batches(offsets_of(lengths, first), max_tokens))
    rows = [row for start, stop in batches for row in range(start, stop)]
    assert rows == list(range(len(lengths)))
    for start, stop in batches:
        tokens = sum(lengths[start:stop])
        assert tokens <= max_tokens or stop - start == 1
        # Greedy: the next passage would not have fitted.
        assert stop == len(lengths) or tokens + lengths[stop] > max_tokens


@settings(deadline=None)
@given(lengths=LENGTHS.filter(len), max_tokens=st.integers(1, 100), data=st.data())
def test_next_stop_always_advances_and_stays_inside(
    lengths: list[int], max_tokens: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(lengths) - 1))
    assert start < next_stop(offsets_of(lengths), start, max_tokens) <= len(lengths)


def test_micro_batches_passage_over_budget_gets_its_own() -> None:
    batches = list(micro_batches(offsets_of([4, 100, 4, 4]), 8))
    assert batches == [(0, 1), (1, 2), (2, 4)]


@settings(deadline=None)
@given(passages=PASSAGES, data=st.data())
def test_token_rows_are_the_tokens_of_rows_in_the_order_given(
    passages: list[list[int]], data: st.DataObject
) -> None:
    values, offsets = buffers([[7, 7, 7], *passages])
    rows = data.draw(st.lists(st.integers(1, len(passages)), min_size=1, max_size=8))
    tokens = TokenRows.of(offsets, np.array(rows))
    chosen = [passages[row - 1] for row in rows]
    assert values[tokens.places_T].tolist() == list(itertools.chain(*chosen))
    assert np.diff(tokens.cu_seqlens).tolist() == [len(passage) for passage in chosen]
