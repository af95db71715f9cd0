"""Writes a model folder with BGE-M3's widths and the quickstart's tokenizer, without weights.

The weights file is empty: a simulated encoder reads only configuration, tokenizer and heads.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from actors.config import ModelConfig
from actors.models.files import COLBERT_HEAD, SPARSE_HEAD, resolve_model

DIM = 1024


def make_wide_model(folder: Path, name: str) -> Path:
    """Write the folder; `name`: the model whose tokenizer is used."""
    folder.mkdir(parents=True)
    for path in resolve_model(ModelConfig(name=name)).folder.glob("*.json"):
        shutil.copy(path, folder / path.name)
    config = json.loads((folder / "config.json").read_text()) | {"hidden_size": DIM}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").touch()
    for head, rows in ((SPARSE_HEAD, 1), (COLBERT_HEAD, DIM)):
        torch.save(torch.nn.Linear(DIM, rows).state_dict(), folder / head)
    return folder
