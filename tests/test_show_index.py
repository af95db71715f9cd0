from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import config_for
from in_process import ray_left_out
from rich.console import Console
from typer.testing import CliRunner

from pipelines.embed_corpus import embed_corpus
from pipelines.index import open_index
from pipelines.show_index import app, look


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, articles: pa.Table) -> str:
    folder = tmp_path_factory.mktemp("show")
    pq.write_table(articles.slice(0, 3), folder / "three.parquet")
    config = config_for(folder / "three.parquet", index={"uri": str(folder / "index")})
    with ray_left_out():
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
