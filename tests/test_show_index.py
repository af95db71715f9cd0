from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import config_for
from generations_by_hand import Doc, History
from rich.console import Console
from typer.testing import CliRunner

from pipelines.embed_corpus import embed_corpus
from pipelines.index import open_index
from pipelines.show_index import app, look
from pipelines.store import open_store

A: Doc = ("Ants", "a0", "a1", "a2")
B: Doc = ("Bees", "b0")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, articles: pa.Table) -> str:
    folder = tmp_path_factory.mktemp("show")
    pq.write_table(articles.slice(0, 3), folder / "three.parquet")
    config = config_for(folder / "three.parquet", index={"uri": str(folder / "index")})
    embed_corpus(config)
    return config.index.uri


def test_show_index_of_a_committed_one_names_place_counts_and_rows(index: str) -> None:
    result = CliRunner().invoke(app, [index, "--rows", "2"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    counts = open_index(index).info.counts
    said = f"{index}: generation 1, 3 documents, {counts.passages} passages"
    assert said.replace(" ", "") in "".join(result.output.split())  # however it wraps
    first = open_index(index).to_table(["passage_id", "n_tokens"]).to_pylist()[0]
    line = next(li for li in result.output.splitlines() if first["passage_id"] in li.split())
    assert f"{first['n_tokens'] - 1} × 64" in line
    assert sum("× 64" in li for li in result.output.splitlines()) == 2


def test_show_index_in_a_narrow_terminal_keeps_every_row_on_one_line(index: str) -> None:
    console = Console(width=80, record=True, quiet=False)
    with console.capture() as capture:
        console.print(look(open_index(index), 3, 80))
    lines = [line for line in capture.get().splitlines() if line.strip()]
    assert len(lines) == 2 + 3
    assert all(len(line) <= 80 and "…" in line for line in lines[2:])


def test_show_index_where_nothing_is_committed_is_one_line_and_exit_2(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path / "nothing")])
    assert result.exit_code == 2
    assert "expected a committed index, found none" in result.output
    assert "Traceback" not in result.output


@pytest.fixture
def grown(tmp_path: Path) -> str:
    """Two generations; rows of the first are masked by both."""
    history = History(open_store(str(tmp_path / "index[x]")))
    history.add({"a": A, "b": B, "c": A}, failed={"f": A})
    history.add({"b": A, "d": B}, delete=["c"], parent=1)
    return history.store.uri


def said(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments], env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    return result.output.splitlines()[0]


def test_show_index_of_two_generations_counts_the_live_view(grown: str) -> None:
    assert said(grown).startswith(f"{grown}: generation 2, 3 documents, 7 passages, m (dense, ")
    index = open_index(grown)
    assert index.passages == index.to_table(["doc_id"]).num_rows == 7
    assert index.info.counts.live_documents == index.documents().num_rows == 3


def test_show_index_of_an_older_generation_says_that_it_is_not_live(grown: str) -> None:
    line = said(grown, "--generation", "1")
    expected = "generation 1 (not live: 2 is), 3 documents, 7 passages, 21 tokens, m (dense, "
    assert line.startswith(f"{grown}: {expected}")


def test_show_index_of_a_generation_that_is_not_there_is_exit_2(grown: str) -> None:
    result = CliRunner().invoke(app, [grown, "--generation", "7"])
    assert result.exit_code == 2
    assert "expected generation 7, found none" in " ".join(result.output.split())


def test_passages_of_a_view_are_counted_without_reading_a_part(grown: str) -> None:
    index = open_index(grown)
    for path in index.part_paths:
        index.store.delete(path)
    assert index.passages == 7
