"""Inputs of the network, and the models it is tested with: packed passages, blocks of tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from conftest import ROOT
from hypothesis import strategies as st

from actors.network.packing import PackedBatch, pack

MODELS = ROOT / "tests/data/oracle/models"
M3, BERT = MODELS / "bge-m3", MODELS / "bge-small-en-v1.5"
EXACT: dict[str, Any] = {"dtype": "float32", "vector_dtype": "float32", "device": "cpu"}
CLOSE = {"rtol": 0, "atol": 1e-5}
"""fp32: what the design promises for packed == alone."""
SEEDS = st.integers(0, 2**31)
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def packed_of(lengths: list[int], token_types: np.ndarray | None = None) -> PackedBatch:
    """Passages of these lengths; their token ids count from 4."""
    offsets = np.cumsum([0, *lengths], dtype=np.int32)
    values = np.arange(4, 4 + offsets[-1], dtype=np.int32)
    cpu = torch.device("cpu")
    return pack(values, offsets, first_position=0, device=cpu, token_types=token_types)


def token_block(rows: list[list[int]]) -> pa.Table:
    return pa.table({"input_ids": pa.array(rows, pa.list_(pa.int32()))})


def edit_json(path: Path, **changes: Any) -> None:
    """Keys replaced; None: left out."""
    content = json.loads(path.read_text()) | changes
    kept = {key: value for key, value in content.items() if changes.get(key, 0) is not None}
    path.write_text(json.dumps(kept))


def copy_of(folder: Path, to: Path, **changes: Any) -> Path:
    """A model's folder, with these changes in config.json."""
    shutil.copytree(folder, to)
    edit_json(to / "config.json", **changes)
    return to
