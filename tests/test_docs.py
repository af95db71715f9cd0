"""Snippets of some pages are run; links of all pages lead somewhere."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from conftest import ROOT

from pipelines.config import load_config
from pipelines.embed_corpus import embed_corpus

PAGES = sorted((ROOT / "docs").glob("*.md"))
RUN = ("output.md", "rejects.md", "reports.md")


def snippets(language: str) -> list[str]:
    texts = [(ROOT / "docs" / name).read_text() for name in RUN]
    return [
        s for text in texts for s in re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)
    ]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """The quickstart's index, of its first 60 articles."""
    out = tmp_path_factory.mktemp("docs")
    settings = [f"index.uri={out}/quickstart", "source.limit=60", "ray.engine=in_process"]
    embed_corpus(load_config(ROOT / "conf/quickstart.yaml", settings))
    return out


@pytest.mark.parametrize("snippet", snippets("python"))
def test_docs_python_runs(snippet: str, out: Path) -> None:
    exec(snippet.replace('"out/', f'"{out}/'), {})


def test_reranking_page_python_runs() -> None:
    """With tiny models of the same names."""
    page = (ROOT / "docs/reranking.md").read_text()
    section = page.partition("## In Python")[2].partition("\n## ")[0]
    models, names = ROOT / "tests/data/oracle/models", dict[str, object]()
    for snippet in re.findall(r"^```python\n(.*?)^```", section, re.M | re.S):
        exec(snippet.replace('"BAAI/', f'"{models}/'), names)


@pytest.mark.parametrize("query", snippets("sql"))
def test_docs_sql_finds_rows(query: str, out: Path) -> None:
    assert len(duckdb.sql(query.replace("'out/", f"'{out}/")).fetchall()) == 3


@pytest.mark.parametrize("command", "".join(snippets("sh")).splitlines())
def test_docs_command_runs(command: str, out: Path) -> None:
    words = shlex.split(command)
    words += ["--set", f"index.uri={out}/quickstart", "--limit", "60"]
    result = subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_docs_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_reliability_page_names_only_tests_that_exist() -> None:
    """`test_x.py`: `words`, and `words` of the same row, are parts of the names of tests there."""
    lines = (ROOT / "docs/reliability.md").read_text().splitlines()
    table = itertools.takewhile(lambda line: line != "## Try it", lines)
    rows = [line for line in table if line.startswith("| ")][1:]
    named = [re.findall(r"`(\w+(?:\.py)?)`", row.rsplit("|", 2)[1]) for row in rows]
    assert len(named) > 20
    for words in named:
        assert words
        tests = ""
        for word in words:
            if word.endswith(".py"):
                tests = (ROOT / "tests" / word).read_text()
            else:
                assert re.search(rf"def test_\w*{word}", tests), word
