"""Notebooks run from the first cell to the last, hold no logic, and are kept without outputs."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import nbformat
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, config_for
from judged_by_hand import GOOD, POOR, evaluation, evaluation_of_files
from nbclient import NotebookClient

from pipelines.embed_corpus import embed_corpus

FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
SHOWS = {
    "01_explore_index.ipynb": ["Topics of", "Sparse weights of", "ColBERT, 0."],
    "02_quality.ipynb": ["nDCG@10", "sparse minus", "dense</h3>", "dense: after minus before"],
    "03_throughput.ipynb": ["Tokens a second", "Where the time went", "Lengths", "Padding avoided"],
}
"""Titles that a notebook's outputs must have."""


def read(name: str) -> Any:
    return nbformat.read(FOLDER / name, as_version=4)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, articles: pa.Table) -> str:
    folder = tmp_path_factory.mktemp("notebooks")
    pq.write_table(articles.slice(0, 40), folder / "docs.parquet")
    config = config_for(
        folder / "docs.parquet",
        index={"uri": str(folder / "index")},
        search={"folder": str(folder / "search")},
    )
    embed_corpus(config)
    return config.index.uri


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """eval.json of an index, and of what it was before."""
    folder = tmp_path_factory.mktemp("evaluations")
    files = folder / "after.json", folder / "before.json"
    files[0].write_bytes(evaluation_of_files(folder, {"dense": POOR, "sparse": GOOD}).to_bytes())
    files[1].write_bytes(evaluation({"dense": {}, "sparse": GOOD}).to_bytes())
    return str(files[0]), str(files[1])


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs_and_shows_what_it_says(
    name: str,
    index: str,
    evaluations: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PACKVEC_INDEX", index)
    monkeypatch.setenv("PACKVEC_EVALUATION", evaluations[0])
    monkeypatch.setenv("PACKVEC_EVALUATION_BEFORE", evaluations[1])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = read(name)
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "stream"]
    html = "".join(output.data.get("text/html", "") for output in outputs if "data" in output)
    assert [title for title in SHOWS[name] if f"<h3>{title}" not in html] == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_valid_without_outputs_and_calls_only(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        assert cell.outputs == []
        assert cell.execution_count is None
        logic = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.If, ast.Lambda, ast.Try)
        assert not [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, logic)]


def test_every_notebook_says_what_it_shows() -> None:
    assert sorted(SHOWS) == NOTEBOOKS
