"""Heads and output columns: naive loops over passages are the reference."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packed_inputs import packed_of
from torch._subclasses.fake_tensor import FakeTensorMode

from actors.config import OUTPUTS
from actors.errors import ModelError
from actors.network import linear
from actors.network.heads import OutputHeads, load_head
from actors.vectors import fixed_size_lists, sparse_vectors

HIDDEN, COLBERT_DIM = 8, 6
LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=6)
NAN, INF = float("nan"), float("inf")


def random_hidden(lengths: list[int], seed: int = 0) -> torch.Tensor:
    return torch.randn(sum(lengths), HIDDEN, generator=torch.Generator().manual_seed(seed))


with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    LINEARS = {
        "sparse": torch.nn.Linear(HIDDEN, 1).requires_grad_(False),
        "colbert": torch.nn.Linear(HIDDEN, COLBERT_DIM).requires_grad_(False),
    }


def heads(**options: Any) -> OutputHeads:
    defaults = {"pooling": "cls", "normalize": True, "truncate_dim": None}
    options = defaults | {"vector_dtype": torch.float32} | options
    return OutputHeads(LINEARS, hidden_size=HIDDEN, **options)


# --- from token vectors to vectors -------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    lengths=LENGTHS,
    data=st.data(),
    outputs=st.sampled_from([("dense",), ("sparse",), ("colbert",), OUTPUTS]),
)
def test_output_heads_not_finite_token_marks_its_passage_only(lengths, data, outputs):
    # A sparse weight of -Inf is a zero after relu, so there only NaN must be seen.
    values = [NAN] if outputs == ("sparse",) else [NAN, INF]
    row = data.draw(st.integers(0, len(lengths) - 1))
    # The first token has no ColBERT vector: only there must it go unseen.
    first = 1 if outputs == ("colbert",) else 0
    lengths[row] = max(lengths[row], first + 1)
    token = data.draw(st.integers(first, lengths[row] - 1))
    hidden_TH = random_hidden(lengths)
    hidden_TH[sum(lengths[:row]) + token] = data.draw(st.sampled_from(values))
    head = heads(pooling="mean", normalize=False)
    found = head(hidden_TH, packed_of(lengths), outputs).finite_N
    assert found.tolist() == [other != row for other in range(len(lengths))]


@pytest.mark.parametrize("value", [1.0, NAN, 70_000.0])  # the last: infinite in float16 only
def test_output_heads_of_first_states_equal_dense_of_all_states(value):
    hidden_TH, packed = random_hidden([2, 1, 4]), packed_of([2, 1, 4])
    hidden_TH[2, 3] = value  # the first and only state of the second passage
    head = heads(truncate_dim=5, normalize=False, vector_dtype=torch.float16)
    found = head.of_first(hidden_TH[packed.firsts_N])
    expected = head(hidden_TH, packed, {"dense"})
    torch.testing.assert_close(found.dense_ND, expected.dense_ND, rtol=0, atol=0, equal_nan=True)
    assert found.finite_N.tolist() == expected.finite_N.tolist() == [True, value == 1, True]
    assert found.sparse_T is found.colbert_TD is None


def test_output_heads_need_first_states_only_for_dense_of_them():
    assert heads().need_first_only(("dense",))
    for outputs in (("dense", "sparse"), ("colbert",), ()):
        assert not heads().need_first_only(outputs)
    for pooling in ("mean", "last_token"):
        assert not heads(pooling=pooling).need_first_only(("dense",))


@pytest.mark.parametrize("pooling", ["cls", "mean", "last_token"])
def test_output_heads_never_wait_for_the_device(pooling, monkeypatch):
    """A tensor without numbers raises where a device would have to be waited for."""
    monkeypatch.setattr(linear, "_has_onednn", lambda: False)  # as on CUDA
    packed, hidden_TH = packed_of([3, 1, 5]), random_hidden([3, 1, 5])
    head, names = heads(pooling=pooling), ("cu_seqlens", "input_ids_T", "position_ids_T")
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        without_numbers = {name: fake.from_tensor(getattr(packed, name)) for name in names}
        packed = dataclasses.replace(packed, **without_numbers)
        vectors = head(fake.from_tensor(hidden_TH), packed, OUTPUTS)
    assert vectors.colbert_TD.shape == (9 - 3, COLBERT_DIM)


def test_output_heads_half_hidden_normalised_in_float32():
    hidden_TH = torch.full((1, HIDDEN), 200.0, dtype=torch.float16)  # squares overflow float16
    vectors = heads()(hidden_TH, packed_of([1]), ("dense",))
    assert vectors.dense_ND.norm().item() == pytest.approx(1, abs=1e-6)


# --- head files --------------------------------------------------------------------------------


def test_load_head_gives_the_files_own_numbers(tmp_path):
    torch.save(LINEARS["colbert"].state_dict(), tmp_path / "head.pt")
    head = load_head(tmp_path / "head.pt", HIDDEN, out_features=None)
    assert (head.in_features, head.out_features) == (HIDDEN, COLBERT_DIM)
    assert torch.equal(head.weight, LINEARS["colbert"].weight)
    assert torch.equal(head.bias, LINEARS["colbert"].bias)


WEIGHT, BIAS = torch.zeros(1, HIDDEN), torch.zeros(1)
NO_STATE = "expected a state dict of weight and bias"


def shaped(weight: tuple[int, ...], bias: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {"weight": torch.zeros(weight), "bias": torch.zeros(bias)}


@pytest.mark.parametrize(
    ("content", "out_features", "said"),
    [
        (shaped((6, HIDDEN + 1), (6,)), None, rf"expected.*found \[6, {HIDDEN + 1}\]"),
        (shaped((6, HIDDEN), (6,)), 1, rf"expected.*found \[6, {HIDDEN}\]"),
        (shaped((HIDDEN,), (1,)), 1, rf"expected.*found \[{HIDDEN}\]"),
        (shaped((), ()), None, r"expected.*found \[\]"),
        (shaped((1, HIDDEN), (7,)), 1, r".*bias.*\[7\]"),
        ([WEIGHT, BIAS], 1, NO_STATE),
        ({"weight": WEIGHT}, 1, NO_STATE),
        ({"linear.weight": WEIGHT, "linear.bias": BIAS}, 1, NO_STATE),
        ({"weight": "not a tensor", "bias": "neither"}, 1, NO_STATE),
        (torch.nn.Linear(HIDDEN, 1), 1, NO_STATE),
        ("half of a file", 1, NO_STATE),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_load_head_of_something_else_is_model_error(tmp_path, content, out_features, said):
    path = tmp_path / "head.pt"
    torch.save(LINEARS["sparse"].state_dict() if isinstance(content, str) else content, path)
    if content == "half of a file":
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ModelError, match=rf"head\.pt: {said}") as error:
        load_head(path, HIDDEN, out_features=out_features)
    assert error.value.remedy or "found" not in said


def test_load_head_never_runs_code_in_the_file(tmp_path):
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "ran").touch, ())

    path = tmp_path / "head.pt"
    torch.save({"weight": Evil(), "bias": BIAS}, path)
    with pytest.raises(ModelError):
        load_head(path, HIDDEN, out_features=1)
    assert not (tmp_path / "ran").exists()


# --- sparse vectors and columns -------------------------------------------------------------------


WEIGHT = st.just(0.0) | st.floats(-5, 5, width=32)
PASSAGES = st.lists(
    st.lists(st.tuples(st.integers(0, 12), WEIGHT), min_size=1, max_size=10), max_size=8
)
LARGEST = 2**31 - 1


@settings(deadline=None)
@given(passages=PASSAGES, non_lexical=st.sets(st.integers(0, 12), max_size=4))
@example(passages=[[(LARGEST, 1.0)], [(0, 2.0), (LARGEST, 3.0)]], non_lexical=set())
def test_sparse_vectors_equal_a_loop_over_dicts(passages, non_lexical):
    flat, expected = [token for passage in passages for token in passage], []
    array = sparse_vectors(
        np.array([weight for _, weight in flat], dtype=np.float32),
        np.array([token_id for token_id, _ in flat], dtype=np.int32),
        np.cumsum([0, *map(len, passages)], dtype=np.int32),
        np.array(sorted(non_lexical), dtype=np.int32),
    )
    array.validate(full=True)
    lists = [("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))]
    assert array.type == pa.struct(lists)
    for passage in passages:
        best: dict[int, float] = {}
        for token_id, weight in passage:
            if weight > 0 and token_id not in non_lexical:
                best[token_id] = max(weight, best.get(token_id, 0.0))
        ids = sorted(best)
        expected.append({"indices": ids, "values": [best[token_id] for token_id in ids]})
    assert array.to_pylist() == expected


def test_fixed_size_lists_of_no_rows_keep_their_width():
    array = fixed_size_lists(np.zeros((0, 3), dtype=np.float32))
    assert len(array) == 0
    assert array.type == pa.list_(pa.float32(), 3)
