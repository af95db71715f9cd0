"""Every family: packed equals alone, and Gemma2's windows equal transformers' own."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.config import ModelConfig
from actors.encoder import Encoder, load_encoder

MODELS = ROOT / "tests/data/oracle/models"
NAMES = (
    "bge-m3",
    "bge-small-en-v1.5",
    "bge-multilingual-gemma2",
    "Qwen3-Embedding-0.6B",
    "bge-en-icl",
)
EXACT = {"dtype": "float32", "vector_dtype": "float32", "device": "cpu"}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def encoder_of(name: str, max_batch_tokens: int = 2048) -> Encoder:
    outputs = ("dense", "sparse", "colbert") if name == "bge-m3" else ("dense",)
    return load_encoder(
        ModelConfig(
            name=str(MODELS / name), outputs=outputs, max_batch_tokens=max_batch_tokens, **EXACT
        )
    )


def block(lengths: list[int], seed: int) -> pa.Table:
    """Random token ids; special ones too."""
    random = np.random.default_rng(seed)
    values = random.integers(0, 260, sum(lengths), dtype=np.int32)
    offsets = np.cumsum([0, *lengths], dtype=np.int32)
    return pa.table({"input_ids": pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))})


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=8),
    budget=st.sampled_from([1, 50, 2048]),
    seed=st.integers(0, 2**31),
)
def test_encode_packed_equals_alone(name: str, lengths: list[int], budget: int, seed: int) -> None:
    tokens = block(lengths, seed)
    together = encoder_of(name, budget).encode_passages(tokens)
    for row in range(len(lengths)):
        alone = encoder_of(name).encode_passages(tokens.slice(row, 1))
        for column in together.column_names:
            ours, theirs = together[column][row].as_py(), alone[column][0].as_py()
            if column == "sparse":
                assert ours["indices"] == theirs["indices"]
                ours, theirs = ours["values"], theirs["values"]
            np.testing.assert_allclose(np.array(ours), np.array(theirs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [16, 5])
def test_gemma2_with_a_window_within_the_text_equals_transformers_eager(
    tmp_path: Path, window: int
) -> None:
    from transformers import AutoModel

    folder = Path(shutil.copytree(MODELS / "bge-multilingual-gemma2", tmp_path / "gemma2"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": window}))
    lengths = [60, 3, 17, 16, 41]
    tokens = block(lengths, 7)
    ours = load_encoder(ModelConfig(name=str(folder), **EXACT)).encode_passages(tokens)["dense"]
    theirs = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    without = encoder_of("bge-multilingual-gemma2").encode_passages(tokens)["dense"]
    for row, ids in enumerate(tokens["input_ids"].to_pylist()):
        with torch.inference_mode():
            hidden = theirs(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        expected = torch.nn.functional.normalize(hidden, dim=-1).numpy()
        np.testing.assert_allclose(np.array(ours[row].as_py()), expected, rtol=0, atol=1e-5)
    # The window matters here: without it the longest text has another vector.
    assert np.abs(np.array(ours[0].as_py()) - np.array(without[0].as_py())).max() > 1e-4
