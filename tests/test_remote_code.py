"""Checkpoints that bring their own Python code: refused, or run padded where that is allowed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from actors.encoder import Encoder, ModelConfig, load_encoder
from actors.errors import ModelError
from actors.model_files import resolve_model

BERT = ROOT / "tests/data/oracle/models/bge-small-en-v1.5"
CODE = """
from transformers import BertConfig, BertModel

class OwnConfig(BertConfig):
    model_type = "own-bert"

class OwnModel(BertModel):
    config_class = OwnConfig
"""
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
