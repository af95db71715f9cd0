"""Heads: naive loops over passages are the reference."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from actors.config import OUTPUTS
from actors.errors import ModelError
from actors.network import linear
from actors.network.heads import OutputHeads, Vectors, load_head
from actors.network.packing import PackedBatch, pack
from actors.vectors import to_arrow

HIDDEN = 8
COLBERT_DIM = 6


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """On matrices this small a second thread waits longer than it works."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- from token vectors to Vectors -------------------------------------------------------------

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=6)


def packed_of(lengths: list[int]) -> PackedBatch:
    offsets = np.cumsum([0, *lengths], dtype=np.int32)
    values = np.arange(4, 4 + offsets[-1], dtype=np.int32)
    return pack(values, offsets, first_position=0, device=torch.device("cpu"))


def random_hidden(lengths: list[int], seed: int) -> torch.Tensor:
    return torch.randn(sum(lengths), HIDDEN, generator=torch.Generator().manual_seed(seed))


def random_linears() -> dict[str, torch.nn.Linear]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sparse, colbert = torch.nn.Linear(HIDDEN, 1), torch.nn.Linear(HIDDEN, COLBERT_DIM)
    return {"sparse": sparse.requires_grad_(False), "colbert": colbert.requires_grad_(False)}


LINEARS = random_linears()


def heads(outputs: tuple[str, ...] = OUTPUTS, **options: Any) -> functools.partial[Vectors]:
    defaults = {
        "hidden_size": HIDDEN,
        "pooling": "cls",
        "normalize": True,
        "truncate_dim": None,
        "vector_dtype": torch.float32,
    }
    return functools.partial(OutputHeads(LINEARS, **(defaults | options)), outputs=outputs)


@settings(max_examples=40, deadline=None)
@given(
    lengths=LENGTHS,
    seed=st.integers(0, 2**31),
    pooling=st.sampled_from(["cls", "mean"]),
    truncate_dim=st.sampled_from([None, 1, 4, HIDDEN, 100]),
    normalize=st.booleans(),
)
def test_output_heads_equal_a_loop_over_passages(
    lengths: list[int], seed: int, pooling: str, truncate_dim: int | None, normalize: bool
) -> None:
    hidden_TH = random_hidden(lengths, seed)
    vectors = heads(pooling=pooling, truncate_dim=truncate_dim, normalize=normalize)(
        hidden_TH, packed_of(lengths)
    )

    def finished(rows: torch.Tensor) -> torch.Tensor:
        rows = rows[:, :truncate_dim]
        return rows / rows.norm(dim=1, keepdim=True) if normalize else rows

    passages = hidden_TH.split(lengths)
    pooled = [p[0] if pooling == "cls" else p.mean(dim=0) for p in passages]
    colbert = torch.cat([LINEARS["colbert"](passage[1:]) for passage in passages])
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(vectors.dense_ND, finished(torch.stack(pooled)), **close)
    torch.testing.assert_close(vectors.colbert_TD, finished(colbert), **close)
    torch.testing.assert_close(
        vectors.sparse_T, LINEARS["sparse"](hidden_TH)[:, 0].clamp(min=0), **close
    )
    assert vectors.finite_N.all()


@settings(max_examples=40, deadline=None)
@given(
    lengths=LENGTHS,
    data=st.data(),
    outputs=st.sampled_from([("dense",), ("sparse",), ("colbert",), OUTPUTS]),
)
def test_output_heads_not_finite_token_marks_its_passage_only(
    lengths: list[int], data: st.DataObject, outputs: tuple[str, ...]
) -> None:
    # A sparse weight of -Inf is a zero after relu, so there only NaN must be seen.
    values = [float("nan")] if outputs == ("sparse",) else [float("nan"), float("inf")]
    row = data.draw(st.integers(0, len(lengths) - 1))
    # The first token has no ColBERT vector: only there must it go unseen.
    first = 1 if outputs == ("colbert",) else 0
    if lengths[row] <= first:
        lengths[row] = first + 1
    token = data.draw(st.integers(first, lengths[row] - 1))
    hidden_TH = random_hidden(lengths, seed=0)
    hidden_TH[sum(lengths[:row]) + token] = data.draw(st.sampled_from(values))
    finite_N = heads(outputs, pooling="mean", normalize=False)(
        hidden_TH, packed_of(lengths)
    ).finite_N
    assert finite_N.tolist() == [other != row for other in range(len(lengths))]


@pytest.mark.parametrize("value", [1.0, float("nan"), 70_000.0])
def test_output_heads_of_first_states_equal_dense_of_all_states(value: float) -> None:
    lengths = [2, 1, 4]
    hidden_TH, packed = random_hidden(lengths, seed=2), packed_of(lengths)
    hidden_TH[2, 3] = value  # the first and only state of the second passage
    options = {"truncate_dim": 5, "normalize": False, "vector_dtype": torch.float16}
    head = OutputHeads(LINEARS, hidden_size=HIDDEN, pooling="cls", **options)
    found = head.of_first(hidden_TH[packed.firsts_N])
    expected = head(hidden_TH, packed, {"dense"})
    torch.testing.assert_close(found.dense_ND, expected.dense_ND, rtol=0, atol=0, equal_nan=True)
    assert found.finite_N.tolist() == expected.finite_N.tolist() == [True, value == 1, True]
    assert found.sparse_T is found.colbert_TD is None


@pytest.mark.parametrize(
    ("pooling", "outputs", "need"),
    [
        ("cls", ("dense",), True),
        ("cls", ("dense", "sparse"), False),
        ("cls", ("colbert",), False),
        ("cls", (), False),
        ("mean", ("dense",), False),
        ("last_token", ("dense",), False),
    ],
)
def test_output_heads_need_first_states_only_for_dense_of_them(
    pooling: Any, outputs: tuple[Any, ...], need: bool
) -> None:
    head = OutputHeads(
        LINEARS,
        hidden_size=HIDDEN,
        pooling=pooling,
        normalize=True,
        truncate_dim=None,
        vector_dtype=torch.float32,
    )
    assert head.need_first_only(outputs) is need


def test_output_heads_overflow_of_the_stored_type_marks_its_passage() -> None:
    hidden_TH = torch.ones(4, HIDDEN)
    hidden_TH[2] = 70_000.0  # finite in float32, infinite in float16
    head = heads(("dense",), normalize=False, vector_dtype=torch.float16)
    assert head(hidden_TH, packed_of([2, 2])).finite_N.tolist() == [True, False]


@pytest.mark.parametrize("pooling", ["cls", "mean", "last_token"])
def test_output_heads_never_wait_for_the_device(
    pooling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor without numbers raises where a device would have to be waited for."""
    monkeypatch.setattr(linear, "_has_onednn", lambda: False)  # as on CUDA
    packed, hidden_TH = packed_of([3, 1, 5]), random_hidden([3, 1, 5], seed=0)
    run = heads(pooling=pooling)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        without_numbers = dataclasses.replace(
            packed,
            cu_seqlens=fake.from_tensor(packed.cu_seqlens),
            input_ids_T=fake.from_tensor(packed.input_ids_T),
            position_ids_T=fake.from_tensor(packed.position_ids_T),
        )
        vectors = run(fake.from_tensor(hidden_TH), without_numbers)
    assert vectors.colbert_TD is not None
    assert vectors.colbert_TD.shape == (9 - 3, COLBERT_DIM)


def test_output_heads_half_hidden_normalised_in_float32() -> None:
    hidden_TH = torch.full((1, HIDDEN), 200.0, dtype=torch.float16)  # squares overflow float16
    vectors = heads(("dense",))(hidden_TH, packed_of([1]))
    assert vectors.dense_ND.norm().item() == pytest.approx(1, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, vector_dtype=st.sampled_from([torch.float16, torch.float32]))
def test_to_arrow_columns_hold_the_vectors_row_by_row(
    lengths: list[int], vector_dtype: torch.dtype
) -> None:
    packed = packed_of(lengths)
    vectors = heads(vector_dtype=vector_dtype)(random_hidden(lengths, seed=1), packed)
    table = to_arrow(
        vectors,
        packed.input_ids_T.numpy().astype(np.int32),
        packed.cu_seqlens.numpy(),
        np.array([4], dtype=np.int32),
    )
    table.validate(full=True)
    item = pa.float16() if vector_dtype == torch.float16 else pa.float32()
    assert table.schema.field("dense").type == pa.list_(item, HIDDEN)
    assert table.schema.field("colbert").type == pa.list_(pa.list_(item, COLBERT_DIM))
    assert table["dense"].to_pylist() == vectors.dense_ND.tolist()
    per_passage = vectors.colbert_TD.split([n - 1 for n in lengths])
    assert table["colbert"].to_pylist() == [rows.tolist() for rows in per_passage]
    assert 4 not in table["sparse"][0]["indices"].as_py()


# --- head files --------------------------------------------------------------------------------


def test_load_head_gives_the_files_own_numbers(tmp_path: Path) -> None:
    path = tmp_path / "head.pt"
    torch.save(LINEARS["colbert"].state_dict(), path)
    head = load_head(path, HIDDEN, out_features=None)
    assert (head.in_features, head.out_features) == (HIDDEN, COLBERT_DIM)
    assert torch.equal(head.weight, LINEARS["colbert"].weight)
    assert torch.equal(head.bias, LINEARS["colbert"].bias)


@pytest.mark.parametrize(
    ("weight", "bias", "out_features"),
    [
        ((COLBERT_DIM, HIDDEN + 1), (COLBERT_DIM,), None),
        ((COLBERT_DIM, HIDDEN), (COLBERT_DIM,), 1),
        ((HIDDEN,), (1,), 1),
        ((), (), None),
    ],
)
def test_load_head_of_another_shape_is_model_error(
    tmp_path: Path, weight: tuple[int, ...], bias: tuple[int, ...], out_features: int | None
) -> None:
    path = tmp_path / "head.pt"
    torch.save({"weight": torch.zeros(weight), "bias": torch.zeros(bias)}, path)
    with pytest.raises(ModelError, match=r"head\.pt: expected") as error:
        load_head(path, HIDDEN, out_features=out_features)
    assert f"found {list(weight)}" in str(error.value)
    assert error.value.remedy


def test_load_head_bias_of_another_shape_is_model_error_naming_it(tmp_path: Path) -> None:
    path = tmp_path / "head.pt"
    torch.save({"weight": torch.zeros(1, HIDDEN), "bias": torch.zeros(7)}, path)
    with pytest.raises(ModelError, match=r"bias.*\[7\]"):
        load_head(path, HIDDEN, out_features=1)


@pytest.mark.parametrize(
    "content",
    [
        [torch.zeros(1, HIDDEN), torch.zeros(1)],
        {"weight": torch.zeros(1, HIDDEN)},
        {"linear.weight": torch.zeros(1, HIDDEN), "linear.bias": torch.zeros(1)},
        {"weight": "not a tensor", "bias": "neither"},
        torch.nn.Linear(HIDDEN, 1),
    ],
    ids=["list", "no-bias", "other-names", "no-tensors", "whole-module"],
)
def test_load_head_of_something_else_than_a_state_dict_is_model_error(
    tmp_path: Path, content: object
) -> None:
    path = tmp_path / "head.pt"
    torch.save(content, path)
    with pytest.raises(ModelError, match=r"head\.pt: expected a state dict of weight and bias"):
        load_head(path, HIDDEN, out_features=1)


def test_load_head_of_damaged_file_is_model_error(tmp_path: Path) -> None:
    path = tmp_path / "head.pt"
    torch.save(LINEARS["sparse"].state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ModelError, match=r"head\.pt: expected a state dict of weight and bias"):
        load_head(path, HIDDEN, out_features=1)


def test_load_head_never_runs_code_in_the_file(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "ran").touch, ())

    path = tmp_path / "head.pt"
    torch.save({"weight": Evil(), "bias": torch.zeros(1)}, path)
    with pytest.raises(ModelError):
        load_head(path, HIDDEN, out_features=1)
    assert not (tmp_path / "ran").exists()
