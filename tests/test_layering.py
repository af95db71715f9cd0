"""Imports go one way: the compute plane knows neither Ray nor the data plane."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "actors").rglob("*.py"))
FORBIDDEN = {"ray", "pipelines"}


def imported(path: Path) -> set[str]:
    """Every top-level package a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import"
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


def loaded_after(*modules: str) -> set[str]:
    """Top-level packages in sys.modules of a fresh interpreter that imported `modules`."""
    code = f"import sys, {', '.join(modules)}; print(*sys.modules, sep='\\n')"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in result.stdout.split()}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_actors_module_imports_neither_ray_nor_pipelines(path: Path) -> None:
    assert not imported(path) & FORBIDDEN


def test_actors_imports_are_seen_by_this_test() -> None:
    """The check above is worth something: it sees late imports as well as those at the top."""
    names = set().union(*map(imported, MODULES))
    assert {"torch", "transformers", "pyarrow", "huggingface_hub", "actors"} <= names


def test_importing_the_encoder_loads_neither_ray_nor_pipelines() -> None:
    loaded = loaded_after("actors.encoder")
    assert "torch" in loaded
    assert not loaded & FORBIDDEN


def test_importing_what_the_driver_needs_loads_no_torch() -> None:
    """Tokenising workers and the driver read a model's limits without paying for torch."""
    loaded = loaded_after(
        "actors.config",
        "actors.errors",
        "actors.models.families",
        "actors.fingerprint",
        "actors.network.micro_batches",
        "actors.models.files",
        "actors.scoring",
        "actors.search.fusion",
        "actors.tokens.tokenizer",
    )
    assert "tokenizers" in loaded
    assert not loaded & {"torch", "transformers", *FORBIDDEN}


def test_importing_the_entry_points_loads_no_torch() -> None:
    """Only actors compute; a driver would start seconds later."""
    loaded = loaded_after("pipelines.embed_corpus", "pipelines.reindex")
    assert "ray" in loaded
    assert "torch" not in loaded


def test_importing_the_endpoints_routes_loads_no_ray() -> None:
    """Any ASGI server can run them; only the deployment is Ray Serve's."""
    loaded = loaded_after("pipelines.endpoint.api", "pipelines.check_endpoint")
    assert "fastapi" in loaded
    assert "ray" not in loaded


def test_importing_the_entry_points_loads_no_matplotlib() -> None:
    """Only the end of a run draws."""
    loaded = loaded_after("pipelines.embed_corpus", "pipelines.reindex", "pipelines.reports.html")
    assert "matplotlib" not in loaded


def test_importing_evaluation_loads_neither_ray_nor_torch() -> None:
    """But for what MTEB drives; and what the extra brings is imported when it is needed."""
    modules = ("bm25", "metrics", "report_html", "results", "trec_runs")
    loaded = loaded_after(*(f"pipelines.evaluation.{name}" for name in modules))
    assert "rich" in loaded
    assert not loaded & {"ray", "torch", "ir_measures", "scipy", "bm25s", "mteb", "matplotlib"}
