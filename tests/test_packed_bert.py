"""The layers of our own equal transformers', weight for weight."""

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

from actors.config import ModelConfig
from actors.models.files import ModelFiles, resolve_model
from actors.network import linear
from actors.network.backbone import fastest, load_backbone, run
from actors.network.packed_bert import PackedBert, can_take
from actors.network.packing import PackedBatch, pack

MODELS = Path(__file__).parent / "data" / "oracle" / "models"
CPU = torch.device("cpu")
SMALLEST_COSINE = {torch.float32: 0.99999, torch.bfloat16: 0.999, torch.float16: 0.9995}
"""The design's, for vectors of the half types."""


@functools.cache
def files_of(name: str) -> ModelFiles:
    return resolve_model(ModelConfig(name=str(MODELS / name)))


@functools.cache
def model_of(name: str, dtype: torch.dtype) -> torch.nn.Module:
    return load_backbone(files_of(name), dtype, CPU)


@functools.cache
def ours_of(name: str, dtype: torch.dtype, onednn: bool) -> PackedBert:
    has_onednn, linear._has_onednn = linear._has_onednn, lambda: onednn and has_onednn()
    try:
        ours = fastest(copy.deepcopy(model_of(name, dtype)), files_of(name).family)
    finally:
        linear._has_onednn = has_onednn
    assert isinstance(ours, PackedBert)
    return ours


def packed(name: str, lengths: list[int], token_types: np.ndarray | None = None) -> PackedBatch:
    values = np.random.default_rng(sum(lengths)).integers(5, 200, sum(lengths), dtype=np.int32)
    files = files_of(name)
    first = files.family.first_position(files.config)
    offsets = np.cumsum([0, *lengths])
    return pack(values, offsets, first_position=first, device=CPU, token_types=token_types)


@pytest.mark.parametrize("onednn", [True, False], ids=["onednn", "plain"])
@pytest.mark.parametrize("dtype", SMALLEST_COSINE, ids=str)
@pytest.mark.parametrize("name", ["bge-small-en-v1.5", "bge-m3"])
def test_packed_bert_equals_transformers(name: str, dtype: torch.dtype, onednn: bool) -> None:
    @settings(max_examples=10, deadline=None)
    @example(lengths=[7])  # alone: attention where it lies, masked up to whole tiles
    @example(lengths=[32])
    @given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8))
    def check(lengths: list[int]) -> None:
        batch, family = packed(name, lengths), files_of(name).family
        with torch.inference_mode():
            theirs = run(model_of(name, torch.float32), family, batch)
            same_type = run(model_of(name, dtype), family, batch).float()
            found = ours_of(name, dtype, onednn)(batch)
        assert found.dtype == dtype
        ours = found.float()
        cosines = torch.cosine_similarity(ours, theirs, dim=1)
        assert cosines.min() > SMALLEST_COSINE[dtype]
        if dtype == torch.float32:
            torch.testing.assert_close(ours, same_type, rtol=0, atol=1e-5)

    check()


@pytest.mark.parametrize("onednn", [True, False], ids=["onednn", "plain"])
@pytest.mark.parametrize("dtype", SMALLEST_COSINE, ids=str)
@pytest.mark.parametrize("name", ["bge-small-en-v1.5", "bge-m3"])
def test_first_states_equal_those_of_all_tokens(
    name: str, dtype: torch.dtype, onednn: bool
) -> None:
    @settings(max_examples=10, deadline=None)
    @example(lengths=[7])  # alone: attention where it lies, masked up to whole tiles
    @example(lengths=[32])
    @given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8))
    def check(lengths: list[int]) -> None:
        batch, ours = packed(name, lengths), ours_of(name, dtype, onednn)
        with torch.inference_mode():
            expected = ours(batch)[batch.firsts_N].float()
            found = ours.first_states(batch)
        assert found.dtype == dtype
        assert found.shape == (len(lengths), expected.shape[1])
        cosines = torch.cosine_similarity(found.float(), expected, dim=1)
        assert cosines.min() > SMALLEST_COSINE[dtype]
        if dtype == torch.float32:
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    check()


def test_first_states_of_token_types_and_one_layer_equal_those_of_all_tokens() -> None:
    model: Any = copy.deepcopy(model_of("bge-small-en-v1.5", torch.float32))
    model.encoder.layer = model.encoder.layer[:1]
    model.embeddings.token_type_embeddings.weight.normal_(
        generator=torch.Generator().manual_seed(0)
    )
    ours = PackedBert(model)
    types = np.arange(16) % 5 > 2
    batch = packed("bge-small-en-v1.5", [1, 7, 7, 1], types)
    with torch.inference_mode():
        expected = ours(batch)[batch.firsts_N]
        torch.testing.assert_close(ours.first_states(batch), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", SMALLEST_COSINE, ids=str)
def test_packed_bert_of_a_passage_alone_depends_on_its_own_tokens_only(dtype: torch.dtype) -> None:
    """Whatever fills up its rows: the vector of [PAD], which no passage has, may be anything."""
    model = copy.deepcopy(model_of("bge-small-en-v1.5", dtype))
    model.get_input_embeddings().weight.data[0] = float("nan")
    batch = packed("bge-small-en-v1.5", [7])
    with torch.inference_mode():
        expected = ours_of("bge-small-en-v1.5", dtype, onednn=True)(batch)
        assert torch.equal(PackedBert(model)(batch), expected)


def test_first_states_are_all_that_the_last_layer_computes() -> None:
    class Watched:
        """A last matmul that notes how many tokens it is for."""

        def __init__(self, inner: linear.Linear) -> None:
            self.inner, self.tokens = inner, list[int]()

        def plus(self, x_TI: torch.Tensor, residual_TO: torch.Tensor) -> torch.Tensor:
            self.tokens.append(len(x_TI))
            return self.inner.plus(x_TI, residual_TO)

    ours = copy.copy(ours_of("bge-m3", torch.float32, onednn=False))
    watched: Any = Watched(ours._last.down)
    ours._last = dataclasses.replace(ours._last, down=watched)
    batch = packed("bge-m3", [3, 1, 5])
    with torch.inference_mode():
        ours.first_states(batch)
        ours(batch)
    assert watched.tokens == [3, 9]


def test_packed_bert_takes_the_weights_and_leaves_no_second_copy() -> None:
    model: Any = copy.deepcopy(model_of("bge-m3", torch.float32))
    PackedBert(model)
    names = [name for name, _ in model.encoder.named_parameters()]
    assert not any(name.endswith("weight") and "LayerNorm" not in name for name in names)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "qwen3"},
        {"hidden_act": "relu"},
        {"is_decoder": True},
        {"add_cross_attention": True},
        {"position_embedding_type": "relative_key"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_can_take_only_what_it_computes(changes: dict[str, Any]) -> None:
    model: Any = copy.deepcopy(model_of("bge-small-en-v1.5", torch.float32))
    assert can_take(model)
    model.config = SimpleNamespace(**(model.config.to_dict() | changes))
    assert not can_take(model)


def test_fastest_of_another_activation_is_transformers_own() -> None:
    name = "bge-small-en-v1.5"
    model: Any = copy.deepcopy(model_of(name, torch.float32))
    model.config.hidden_act = "gelu_new"
    batch = packed(name, [3, 5])
    with torch.inference_mode():
        found = fastest(model, files_of(name).family)(batch)
        expected = run(model, files_of(name).family, batch)
    assert torch.equal(found, expected)
