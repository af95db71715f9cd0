"""Windows: how they are cut into micro-batches, and that what these compute lands in its place."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.config import OUTPUTS, Output
from actors.network.forward import Forward, WindowVectors
from actors.network.heads import OutputHeads
from actors.network.packing import PackedBatch

CPU = torch.device("cpu")
WIDE = 4
LENGTHS = st.lists(st.integers(0, 700), min_size=1, max_size=30)


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


class Recorder:
    """A backbone whose hidden states are the token ids, and which notes what it was given."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []

    def __call__(self, packed: PackedBatch) -> torch.Tensor:
        self.batches.append((len(packed.lengths_N), len(packed.input_ids_T)))
        return packed.input_ids_T[:, None].expand(-1, WIDE).float()


def identity_heads() -> OutputHeads:
    sparse, colbert = torch.nn.Linear(WIDE, 1), torch.nn.Linear(WIDE, WIDE)
    for linear in (sparse, colbert):
        linear.requires_grad_(False)
        linear.weight.copy_(torch.eye(WIDE)[: len(linear.weight)])
        linear.bias.zero_()
    return OutputHeads(
        {"sparse": sparse, "colbert": colbert},
        hidden_size=WIDE,
        pooling="cls",
        normalize=False,
        truncate_dim=None,
        vector_dtype=torch.float32,
    )


def run(
    lengths: list[int],
    max_batch_tokens: int,
    threads: int,
    outputs: Collection[Output] = OUTPUTS,
) -> tuple[Recorder, WindowVectors]:
    torch.set_num_threads(threads)
    backbone = Recorder()
    forward = Forward(
        backbone,
        identity_heads(),
        device=CPU,
        first_position=0,
        max_batch_tokens=max_batch_tokens,
    )
    offsets = np.cumsum([0, *lengths]) + 3
    values = np.arange(offsets[-1], dtype=np.int32) + 1
    return backbone, forward(values, offsets, outputs)


@settings(max_examples=40, deadline=None)
@given(
    lengths=LENGTHS,
    max_batch_tokens=st.integers(1, 3000),
    threads=st.integers(1, 3),
)
def test_forward_puts_each_token_where_it_belongs(
    lengths: list[int], max_batch_tokens: int, threads: int
) -> None:
    backbone, found = run(lengths, max_batch_tokens, threads)
    vectors, failures = found.vectors, found.failures
    assert vectors.dense_ND is not None
    assert vectors.sparse_T is not None
    assert vectors.colbert_TD is not None
    ids = np.split(np.arange(sum(lengths)) + 4, np.cumsum(lengths)[:-1])
    assert set(failures) == {row for row, n in enumerate(lengths) if n == 0}
    assert vectors.finite_N.tolist() == [n > 0 for n in lengths]
    assert vectors.dense_ND[:, 0].tolist() == [part[0] if len(part) else 0 for part in ids]
    assert vectors.sparse_T.tolist() == np.concatenate(ids).tolist()
    assert vectors.colbert_TD[:, 0].tolist() == np.concatenate([p[1:] for p in ids]).tolist()
    assert sum(tokens for _, tokens in backbone.batches) == sum(lengths)
    assert all(n == 1 or tokens <= max_batch_tokens for n, tokens in backbone.batches)


@settings(max_examples=20, deadline=None)
@given(lengths=LENGTHS, max_batch_tokens=st.integers(1, 3000))
def test_forward_of_dense_alone_equals_dense_of_all(
    lengths: list[int], max_batch_tokens: int
) -> None:
    """By a backbone that knows no first states; those that do: test_packed_bert.py."""
    _, some = run(lengths, max_batch_tokens, 2, {"dense"})
    _, every = run(lengths, max_batch_tokens, 2)
    assert some.vectors.dense_ND is not None
    assert every.vectors.dense_ND is not None
    assert torch.equal(some.vectors.dense_ND, every.vectors.dense_ND)
    assert torch.equal(some.vectors.finite_N, every.vectors.finite_N)
    assert some.failures == every.failures


@pytest.mark.parametrize(
    ("tokens", "threads", "batches"),
    [
        (2048, 1, 1),
        (2048, 2, 2),
        (4096, 1, 2),
        (6144, 2, 4),
        (16384, 2, 8),
        (400, 2, 1),
        (64, 4, 1),
    ],
)
def test_forward_gives_each_thread_as_many_micro_batches(
    tokens: int, threads: int, batches: int
) -> None:
    backbone, _ = run([16] * (tokens // 16), 2048, threads)
    assert len(backbone.batches) == batches
    sizes = [size for _, size in backbone.batches]
    assert max(sizes) - min(sizes) <= 16 * batches


@pytest.mark.parametrize("threads", [2, 3])
def test_forward_of_mixed_lengths_gives_all_threads_as_many_and_the_longest_first(
    threads: int,
) -> None:
    lengths = [20, 512, 300] * 40
    backbone, _ = run(lengths, 2048, threads)
    assert len(backbone.batches) % threads == 0
    rows, tokens = backbone.batches[0]
    assert tokens == 512 * rows
    assert backbone.batches[-1][1] > 1500  # no small one is left over
