"""Snippets of some pages are run; links of all pages lead somewhere."""

from __future__ import annotations

import itertools
import os
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
from pipelines.index import open_index

PAGES = sorted((ROOT / "docs").glob("*.md"))
RIDDLES = re.compile(
    r"\b(so many (?!usually)|anew\b|as it was\b|no part of|goes? on with|gone on|less the\b"
    r"|less those|a token but the|in passing\b|where there is none)",
    re.I,
)
RUN = ("output.md", "rejects.md", "reports.md")


def snippets(language: str) -> list[str]:
    texts = [(ROOT / "docs" / name).read_text() for name in RUN]
    return [
        s for text in texts for s in re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)
    ]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def test_docs_links_lead_to_files() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"


def test_docs_pages_end_with_what_to_read_next() -> None:
    for page in PAGES:
        if "configuration" not in page.name:  # `make docs` writes these
            last = page.read_text().rpartition("\n---\n")[2]
            assert last.strip().startswith("Read next: "), page


def test_prose_has_no_phrase_that_needs_a_second_reading() -> None:
    """Neither in pages nor in the source, whose docstrings become pages."""
    files = [*PAGES, *ROOT.glob("*.md"), *ROOT.glob("conf/**/*.yaml")]
    files += [*ROOT.glob("pipelines/**/*.py"), *ROOT.glob("actors/**/*.py")]
    for file in files:
        if file.name != "CHANGELOG.md":
            found = RIDDLES.search(" ".join(file.read_text().split()))
            assert not found, f"{file}: {found and found[0]}"


def test_contributing_names_only_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for path in re.findall(r"`((?:pipelines|actors|tests|docs|benchmarks)/[\w./]*)`", text):
        assert (ROOT / path).exists(), path


def test_tutorial_commands_run_in_their_order(tmp_path: Path) -> None:
    """Every block, in an empty folder; the installation is this environment's."""
    page = (ROOT / "docs/tutorial.md").read_text().partition("## 2.")[2]
    script = "\n".join(
        f"{block}\necho 'rc' $?" for block in re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S)
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = result.stdout + result.stderr
    codes = re.findall(r"^rc (\d+)$", result.stdout, re.M)
    assert codes.count("1") == 1, said  # the run with too many rejects, which the page explains
    assert codes.count("0") == len(codes) - 1, said
    for block in re.findall(r"^```text\n(.*?)^```", page, re.M | re.S):
        for line in block.splitlines():
            assert " ".join(line.split()) in " ".join(said.split()), line
    index = open_index(str(tmp_path / "out/articles"))
    assert index.info.generation == 1
    snippet = re.search(r"^```python\n(.*?)^```", page, re.M | re.S)
    assert snippet
    exec(snippet[1].replace('"out/', f'"{tmp_path}/out/'), {})


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
