"""Every command and snippet of the README is run here; remote models and data are replaced."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pytest
from conftest import ROOT

from pipelines.index import open_index

README = (ROOT / "README.md").read_text()

# What a test cannot reach, and what would make it slow: (command, what is added to it).
REPLACED = {
    "conf/wiki.yaml": [
        "source.uri=conf/data/simplewiki-1200.parquet",
        "index.uri={out}/wiki",
        "model.name=builtin:tiny-m3",
        "model.revision=null",
        "model.max_length=512",
        "model.dtype=float32",
        "ray.gpus_per_actor=0",
        "source.limit=40",
    ],
    "conf/quickstart.yaml": ["index.uri={out}/quickstart", "source.limit=40"],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def commands() -> list[str]:
    """The README's commands; `make quickstart` as the commands make would run."""
    found: list[str] = []
    for line in "".join(blocks("sh")).splitlines():
        if line == "make quickstart":
            recipe = re.search(
                r"^quickstart:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M
            )
            assert recipe
            found += [step.strip().replace("$(BIN)/", "") for step in recipe[1].splitlines()]
        # test_endpoint_serve runs the endpoint.
        elif line.strip() and line not in ("make test", "serve run conf/serve.yaml"):
            found.append(line.replace("packvec ", "python -m pipelines "))
    return found


def adapted(command: str, out: Path) -> list[str]:
    words = shlex.split(command)
    assert words[:2] == ["python", "-m"], command
    words[0] = sys.executable
    for name, settings in REPLACED.items():
        if name in words:
            words += [w for s in settings for w in ("--set", s.format(out=out))]
    return [
        word.replace("out/", f"{out}/") if word.startswith(("out/", "index.uri=out/")) else word
        for word in words
    ]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of the README's commands, with their output under the folder returned.

    In its order, but what does not need each other two at a time: starting is most of it.
    """
    out = tmp_path_factory.mktemp("readme")
    found = commands()
    assert len(found) >= 5
    first = [command for command in found if "quickstart" in command or "wiki" in command]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run_all, (first, [c for c in found if c not in first]), (out, out)))
    return out


def run_all(some: list[str], out: Path) -> None:
    for command in some:
        result = subprocess.run(
            adapted(command, out), cwd=ROOT, capture_output=True, text=True, timeout=240
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
        assert "Traceback" not in result.stderr


def test_readme_commands_run_and_leave_their_indexes(ran: Path) -> None:
    for name in ("quickstart", "wiki", "small"):
        assert (ran / name / "generations/000001/manifest.json").exists()


def test_readme_index_snippet_runs(ran: Path, ray_cluster: None) -> None:
    snippet = next(block for block in blocks("python") if "open_index" in block)
    exec(snippet.replace('"out/', f'"{ran}/'), {})


def test_readme_encoder_snippet_runs() -> None:
    snippet = next(block for block in blocks("python") if "load_encoder" in block)
    assert "BAAI/bge-m3" in snippet
    names: dict[str, object] = {}
    exec(snippet.replace("BAAI/bge-m3", "builtin:tiny-m3"), names)


def test_readme_sql_of_the_index_runs(ran: Path) -> None:
    sql = open_index(str(ran / "quickstart")).to_sql(["title", "dense"])
    assert len(duckdb.sql(f"{sql} limit 5").fetchall()) == 5


def test_readme_stays_short_and_names_only_files_that_exist() -> None:
    assert len(README.split()) < 700
    for link in re.findall(r"\]\(([^)#]+)", README):
        assert (ROOT / link).exists(), link
    for module in re.findall(r"\b(\w+\.py)\b", README):
        assert list(ROOT.glob(f"*/{module}")), module
