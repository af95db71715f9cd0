"""Runs on clusters that change, or have little memory; `make slow`, they take minutes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cluster_runs import MIB
from conftest import ROOT
from safetensors.torch import load_file, save_file

from actors.models.tiny import HIDDEN, ensure_tiny_m3
from pipelines.index import open_index
from pipelines.store import open_store
from pipelines.verify_index import verify

COLBERT_DIM, LENGTH = 1024, 8192
ACTOR_BYTES = 1024 * MIB

pytestmark = pytest.mark.slow


def run(case: str, index: Path, *arguments: Path) -> dict[str, Any]:
    """What the script says, once its index is whole."""
    script = [sys.executable, str(ROOT / "tests/cluster_runs.py"), case, str(index)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [*script, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    assert verify(open_store(str(index)), deep=True).problems.lines() == []
    return found


@pytest.fixture
def documents(tmp_path: Path, articles: pa.Table) -> Path:
    """200 articles in ten row groups."""
    path = tmp_path / "documents.parquet"
    pq.write_table(articles.slice(0, 200), path, row_group_size=20)
    return path


def test_cluster_that_changes_in_mid_run_gets_every_document_done(
    tmp_path: Path, documents: Path, articles: pa.Table
) -> None:
    """A node joins and is made use of; it is lost for good, and the run goes on without it."""
    found = run("changing", tmp_path / "index", documents)
    workers = Counter(found["workers"])
    assert workers.total() == 100
    assert len(workers) >= 2  # of the first pool one or two, and one of the pool after the loss
    assert len([*tmp_path.glob("index/runs/*/words/*.json")]) == 3
    ids = open_index(str(tmp_path / "index")).documents()["doc_id"].to_pylist()
    assert sorted(ids) == sorted(articles["id"].to_pylist()[:200])


def wide_model(folder: Path) -> Path:
    """The tiny M3 with BGE-M3's lengths: 8,192 tokens, ColBERT vectors of 1,024 numbers."""
    shutil.copytree(ensure_tiny_m3(), folder)
    weights = load_file(folder / "model.safetensors")
    name = "embeddings.position_embeddings.weight"
    weights[name] = weights[name].repeat(17, 1)[: LENGTH + 2].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = LENGTH + 2
    (folder / "config.json").write_text(json.dumps(config))
    colbert = torch.nn.Linear(HIDDEN, COLBERT_DIM)
    torch.save(colbert.state_dict(), folder / "colbert_linear.pt")
    return folder


def test_colbert_of_long_passages_fits_a_small_object_store_and_small_actors(
    tmp_path: Path, articles: pa.Table
) -> None:
    """40 passages of 16 MiB each: more than the object store of 400 MiB holds."""
    text = " ".join(articles["text"].to_pylist()[:60])[:60_000]
    columns = {name: ["t"] * 40 for name in ("title", "url")}
    table = pa.table({"id": [f"d{i}" for i in range(40)], "text": [text] * 40} | columns)
    pq.write_table(table, tmp_path / "documents.parquet")
    model = wide_model(tmp_path / "model")
    found = run("small", tmp_path / "index", tmp_path / "documents.parquet", model)
    index = open_index(str(tmp_path / "index"))
    assert index.to_table(["n_tokens"])["n_tokens"].to_pylist() == [LENGTH] * 40
    assert sum(file.stat().st_size for file in tmp_path.glob("index/data/*/*")) > 600 * MIB
    assert len(found["workers"]) == len(found["peaks"]) == 3
    assert max(found["peaks"]) < ACTOR_BYTES
