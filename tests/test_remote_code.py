"""Checkpoints that bring their own Python code: refused, or run padded where that is allowed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from transformers import AutoModelForSequenceClassification, BertConfig

from actors.config import ModelConfig, RerankerConfig
from actors.encoder import Encoder, load_encoder
from actors.errors import ModelError
from actors.models.files import resolve_model
from actors.reranker import Reranker, load_reranker

BERT = ROOT / "tests/data/oracle/models/bge-small-en-v1.5"
CODE = """
from transformers import BertConfig, BertModel

class OwnConfig(BertConfig):
    model_type = "own-bert"

class OwnModel(BertModel):
    config_class = OwnConfig
"""
RERANKER_CODE = """
from transformers import BertConfig, BertForSequenceClassification

class OwnConfig(BertConfig):
    model_type = "own-bert"

class OwnReranker(BertForSequenceClassification):
    config_class = OwnConfig
"""
PAIRS = [
    ("a query", "a text"),
    ("", "b"),
    ("another query", "a text quite a bit longer"),
    ("c", ""),
]
TEXTS = ["a short text", "another text that is quite a bit longer than the first one", "x"]


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """BERT's weights under code of their own."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = Path(shutil.copytree(BERT, tmp_path / "own_bert"))
    (folder / "own_code.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "own-bert"
    config["auto_map"] = {"AutoConfig": "own_code.OwnConfig", "AutoModel": "own_code.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def dense(encoder: Encoder) -> np.ndarray:
    return np.stack(encoder.encode_passages(TEXTS)["dense"].to_numpy())


def test_resolve_model_with_its_own_code_is_refused_by_default(remote: Path) -> None:
    with pytest.raises(ModelError, match="needs the Python code of its repository") as caught:
        resolve_model(ModelConfig(name=str(remote)))
    assert "model.trust_remote_code=true" in caught.value.remedy


def test_encode_with_remote_code_equals_the_packed_path(remote: Path) -> None:
    def config(folder: Path, trust: bool) -> ModelConfig:
        return ModelConfig(
            name=str(folder),
            trust_remote_code=trust,
            vector_dtype="float32",
            dtype="float32",
            device="cpu",
        )

    theirs = dense(load_encoder(config(remote, trust=True)))
    np.testing.assert_allclose(theirs, dense(load_encoder(config(BERT, trust=False))), atol=1e-5)


@pytest.fixture
def rerankers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A BERT reranker, whose token types count; and its weights under code of their own."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    plain, own = tmp_path / "plain", tmp_path / "own_reranker"
    torch.manual_seed(0)
    known = json.loads((BERT / "config.json").read_text())
    config = BertConfig(**{**known, "architectures": None, "num_labels": 1, "type_vocab_size": 2})
    model = AutoModelForSequenceClassification.from_config(config)
    torch.nn.init.normal_(model.bert.embeddings.token_type_embeddings.weight)
    model.save_pretrained(plain)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BERT / name, plain / name)
    shutil.copytree(plain, own)
    (own / "own_code.py").write_text(RERANKER_CODE)
    saved = json.loads((own / "config.json").read_text())
    saved["model_type"] = "own-bert"
    saved["architectures"] = ["OwnForSequenceClassification"]
    saved["auto_map"] = {
        "AutoConfig": "own_code.OwnConfig",
        "AutoModelForSequenceClassification": "own_code.OwnReranker",
    }
    (own / "config.json").write_text(json.dumps(saved))
    return plain, own


def reranker(folder: Path, *, trust: bool) -> Reranker:
    return load_reranker(
        RerankerConfig(
            name=str(folder),
            trust_remote_code=trust,
            max_length=60,
            dtype="float32",
            device="cpu",
        )
    )


def test_reranker_with_its_own_code_is_refused_by_default(rerankers: tuple[Path, Path]) -> None:
    with pytest.raises(ModelError, match="needs the Python code of its repository") as caught:
        reranker(rerankers[1], trust=False)
    assert "trust_remote_code=true" in caught.value.remedy


def test_rerank_with_remote_code_equals_the_packed_path(rerankers: tuple[Path, Path]) -> None:
    """Padded, with the token types that tell query and passage apart."""
    plain, own = rerankers
    expected = reranker(plain, trust=False).score(PAIRS)
    np.testing.assert_allclose(reranker(own, trust=True).score(PAIRS), expected, atol=1e-5)
