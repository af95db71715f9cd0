"""The backbone: the checkpoint's weights, in layers of our own that equal transformers'."""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packed_inputs import BERT, CLOSE, M3, copy_of
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from actors.config import ModelConfig
from actors.errors import ModelError
from actors.models.files import ModelFiles, resolve_model
from actors.network import attention, linear
from actors.network.backbone import (
    TORCH_DTYPES,
    fastest,
    load_backbone,
    resolve_device,
    resolve_dtype,
    run,
)
from actors.network.linear import prepared, steady_rows
from actors.network.packed_bert import PackedBert, can_take
from actors.network.packing import PackedBatch, pack

CPU = torch.device("cpu")


def load(folder, dtype=torch.float32):
    return load_backbone(resolve_model(ModelConfig(name=str(folder))), dtype, CPU)


@pytest.mark.parametrize("dtype", TORCH_DTYPES.values(), ids=str)
def test_load_backbone_holds_the_files_weights_in_the_type_asked_for(dtype):
    backbone, stored = load(BERT, dtype), load_file(BERT / "model.safetensors")
    parameters = dict(backbone.named_parameters())
    assert parameters.keys() <= stored.keys()  # the pooler is left out
    for name, parameter in parameters.items():
        assert parameter.dtype == dtype
        assert not parameter.requires_grad
        assert torch.equal(parameter, stored[name].to(dtype))
    assert not backbone.training
    assert backbone.config._attn_implementation == attention.NAME


MISSING = "encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize(
    ("changes", "spoil", "said"),
    [
        ({}, "a weight", f"expected every weight of BertModel.*{MISSING}"),
        ({"intermediate_size": 128}, "", "bert"),
        ({"vocab_size": 300}, "", "bert"),
        ({}, "all", "bert"),
        ({}, "half", "bert"),
    ],
)
def test_load_backbone_of_weights_that_do_not_fit_is_model_error(tmp_path, changes, spoil, said):
    folder = copy_of(BERT, tmp_path / "bert", **changes)
    path = folder / "model.safetensors"
    if spoil == "a weight":
        weights = load_file(path)
        del weights[MISSING]
        save_file(weights, path, metadata={"format": "pt"})
    elif spoil:
        path.write_bytes(path.read_bytes()[: 0 if spoil == "all" else 100_000])
    with pytest.raises(ModelError, match=said) as error:
        load(folder)
    assert str(folder) in error.value.message


def test_resolve_dtype_given_is_kept_and_auto_is_half_on_cuda_and_never_float16_on_cpu():
    cuda = torch.device("cuda")
    for dtype in ("float16", "bfloat16", "float32"):
        assert resolve_dtype(dtype, CPU) == resolve_dtype(dtype, cuda) == dtype
    assert resolve_dtype("auto", cuda) == "float16"
    assert resolve_dtype("auto", CPU) in {"bfloat16", "float32"}


def test_resolve_device_auto_is_cuda_exactly_where_there_is_one():
    device = resolve_device("auto")
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cuda", "expected a CUDA device for 'cuda', found none"),
        ("cuda:1", "expected a CUDA device for 'cuda:1', found none"),
        ("gpu", r"model\.device"),
        ("cuda:x", r"model\.device"),
    ],
)
def test_resolve_device_that_is_not_there_is_model_error(name, said):
    if "found none" in said and torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    with pytest.raises(ModelError, match=said):
        resolve_device(name)


# --- layers of our own ----------------------------------------------------------------------------


SMALLEST_COSINE = {torch.float32: 0.99999, torch.bfloat16: 0.999, torch.float16: 0.9995}
"""The design's, for vectors of the half types."""


@functools.cache
def files_of(folder: Path) -> ModelFiles:
    return resolve_model(ModelConfig(name=str(folder)))


@functools.cache
def model_of(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return load_backbone(files_of(folder), dtype, torch.device("cpu"))


@functools.cache
def ours_of(folder: Path, dtype: torch.dtype, onednn: bool) -> PackedBert:
    has_onednn, linear._has_onednn = linear._has_onednn, lambda: onednn and has_onednn()
    try:
        ours = fastest(copy.deepcopy(model_of(folder, dtype)), files_of(folder).family)
    finally:
        linear._has_onednn = has_onednn
    assert isinstance(ours, PackedBert)
    return ours


def packed(folder: Path, lengths: list[int], types: np.ndarray | None = None) -> PackedBatch:
    values = np.random.default_rng(sum(lengths)).integers(5, 200, sum(lengths), dtype=np.int32)
    files = files_of(folder)
    where = {"first_position": files.family.first_position(files.config), "token_types": types}
    return pack(values, np.cumsum([0, *lengths]), device=torch.device("cpu"), **where)


def assert_close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert (found.dtype, found.shape) == (dtype, expected.shape)
    cosines = torch.cosine_similarity(found.float(), expected.float(), dim=1)
    assert cosines.min() > SMALLEST_COSINE[dtype]
    if dtype == torch.float32:
        torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("onednn", [True, False], ids=["onednn", "plain"])
@pytest.mark.parametrize("dtype", SMALLEST_COSINE, ids=str)
@pytest.mark.parametrize("folder", [BERT, M3], ids=["bert", "xlm-roberta"])
def test_packed_bert_equals_transformers_and_first_states_those_of_all(folder, dtype, onednn):
    @settings(max_examples=10, deadline=None)
    @example(lengths=[7])  # alone: attention where it lies, masked up to whole tiles
    @example(lengths=[32])
    @given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8))
    def check(lengths):
        batch, ours = packed(folder, lengths), ours_of(folder, dtype, onednn)
        with torch.inference_mode():
            found = ours(batch)
            assert_close(found, run(model_of(folder), files_of(folder).family, batch), dtype)
            assert_close(ours.first_states(batch), found[batch.firsts_N], dtype)

    check()


def test_first_states_of_token_types_and_one_layer_equal_those_of_all_tokens():
    model = copy.deepcopy(model_of(BERT))
    model.encoder.layer = model.encoder.layer[:1]
    seeded = torch.Generator().manual_seed(0)
    model.embeddings.token_type_embeddings.weight.normal_(generator=seeded)
    batch, ours = packed(BERT, [1, 7, 7, 1], np.arange(16) % 5 > 2), PackedBert(model)
    with torch.inference_mode():
        expected = ours(batch)[batch.firsts_N]
        torch.testing.assert_close(ours.first_states(batch), expected, **CLOSE)


@pytest.mark.parametrize("dtype", SMALLEST_COSINE, ids=str)
def test_packed_bert_of_a_passage_alone_depends_on_its_own_tokens_only(dtype):
    """Whatever fills up its rows: the vector of [PAD], which no passage has, may be anything."""
    model = copy.deepcopy(model_of(BERT, dtype))
    model.get_input_embeddings().weight.data[0] = float("nan")
    batch = packed(BERT, [7])
    with torch.inference_mode():
        expected = ours_of(BERT, dtype, onednn=True)(batch)
        assert torch.equal(PackedBert(model)(batch), expected)


def test_first_states_are_all_that_the_last_layer_computes():
    tokens = []
    ours = copy.copy(ours_of(M3, torch.float32, onednn=False))
    down = ours._last.down

    def plus(x_TI, residual_TO):
        tokens.append(len(x_TI))
        return down.plus(x_TI, residual_TO)

    ours._last = dataclasses.replace(ours._last, down=SimpleNamespace(plus=plus))
    batch = packed(M3, [3, 1, 5])
    with torch.inference_mode():
        ours.first_states(batch)
        ours(batch)
    assert tokens == [3, 9]


def test_packed_bert_takes_the_weights_and_leaves_no_second_copy():
    model = copy.deepcopy(model_of(M3))
    PackedBert(model)
    names = [name for name, _ in model.encoder.named_parameters()]
    assert not any(name.endswith("weight") and "LayerNorm" not in name for name in names)


def test_can_take_only_what_it_computes():
    model = copy.deepcopy(model_of(BERT))
    assert can_take(model)
    known = model.config.to_dict()
    for changes in (
        {"model_type": "qwen3"},
        {"hidden_act": "relu"},
        {"is_decoder": True},
        {"add_cross_attention": True},
        {"position_embedding_type": "relative_key"},
    ):
        model.config = SimpleNamespace(**(known | changes))
        assert not can_take(model), changes


def test_fastest_of_another_activation_is_transformers_own():
    model, family = copy.deepcopy(model_of(BERT)), files_of(BERT).family
    model.config.hidden_act = "gelu_new"
    batch = packed(BERT, [3, 5])
    with torch.inference_mode():
        assert torch.equal(fastest(model, family)(batch), run(model, family, batch))


# --- their matrices -------------------------------------------------------------------------------


TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Of numbers of about 1; one step of the half types is 2^-8 and 2^-11."""
needs_onednn = pytest.mark.skipif(not linear._has_onednn(), reason="no oneDNN with bfloat16 here")


@pytest.mark.parametrize("onednn", [pytest.param(True, marks=needs_onednn), False])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_prepared_equals_torch_in_float32_and_leaves_its_input(dtype, onednn, monkeypatch):
    monkeypatch.setattr(linear, "_has_onednn", lambda: onednn)

    @settings(max_examples=15, deadline=None)
    @given(tokens=st.integers(1, 70), wide=st.integers(1, 40), out=st.integers(1, 40))
    def check(tokens, wide, out):
        made = torch.Generator().manual_seed(tokens * wide * out)
        shapes = [(tokens, wide), (tokens, out), (out, wide), (out,)]
        given = [torch.randn(shape, generator=made).to(dtype) for shape in shapes]
        given[2] /= wide**0.5
        kept = x, residual, weight, bias = [each.clone() for each in given]
        exact = F.linear(x.float(), weight.float(), bias.float())
        with torch.inference_mode():
            layer = prepared(weight.clone(), bias)
            found = (layer(x), layer.gelu(x), layer.plus(x, residual))
        assert all(torch.equal(*pair) for pair in zip(kept, given, strict=True))
        expected = (exact, F.gelu(exact), exact + residual.float())
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == dtype
            atol = TOLERANCE[dtype] * max(theirs.abs().max().item(), 1)
            torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=atol)

    check()


@needs_onednn
@pytest.mark.parametrize(("dtype", "tile"), [(torch.float32, 1), (torch.bfloat16, 16)], ids=str)
def test_steady_rows_are_few_numbers_not_far_above(dtype, tile):
    like = torch.zeros(1, dtype=dtype)
    found = {rows: steady_rows(rows, like) for rows in range(1, 4097)}
    assert all(rows <= steady for rows, steady in found.items())
    assert all(steady - rows < max(rows / 32, tile) for rows, steady in found.items())
    assert all(steady_rows(steady, like) == steady for steady in found.values())
    assert len({steady for steady in found.values() if steady <= 2_048}) <= 224


def test_steady_rows_where_code_is_not_made_for_them_are_as_given():
    assert steady_rows(1_001, torch.zeros(1, dtype=torch.float16)) == 1_001
