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
from in_process import ray_left_out
from nbclient import NotebookClient

from pipelines.embed_corpus import embed_corpus

FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
SHOWS = {
    "01_explore_index.ipynb": ["12 passages in", "Sparse weights of", "0."],
    "02_quality.ipynb": ["nDCG@10", "sparse less dense", "dense", "dense: after less before"],
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
    with ray_left_out():
        embed_corpus(config)
    return config.index.uri


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory, index: str) -> tuple[str, str]:
    """eval.json of the index, and one before it: each title should find its article."""
    folder = tmp_path_factory.mktemp("evaluations")
    rows = (
        open_index(index)
        .to_table(["doc_id", "title"])
        .group_by("doc_id")
        .aggregate([("title", "first")])
    )
    titles = dict(zip(*(column.to_pylist() for column in rows.columns), strict=True))
    queries, qrels = folder / "queries.jsonl", folder / "test.tsv"
    queries.write_text(
        "\n".join(json.dumps({"_id": i, "text": title}) for i, title in titles.items())
    )
    qrels.write_text("".join(f"{i}\t{i}\t1\n" for i in titles))
    return ""


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs_and_shows_what_it_says(
    name: str, index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACKVEC_INDEX", index)
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
