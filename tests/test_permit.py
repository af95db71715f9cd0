"""A run above confirm_bytes: asked about once, refused where nobody can answer."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from actors.errors import ConfigError
from pipelines.embed_corpus import app, embed_corpus
from pipelines.estimate.confirm import Permit


@pytest.fixture
def large(tmp_path: Any, make_config: Any) -> Any:
    """A configuration whose run is above what it may write unasked."""
    table = {c: [f"{c} {i}" for i in range(8)] for c in ("id", "text", "title", "url")}
    pq.write_table(pa.table(table), tmp_path / "docs.parquet")
    return make_config(tmp_path / "docs.parquet", confirm_bytes=100)


def test_run_above_confirm_bytes_without_a_person_is_refused(large: Any, tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="more than confirm_bytes") as caught:
        embed_corpus(large)
    assert caught.value.exit_code == 2
    assert "--yes" in caught.value.remedy
    assert not list((tmp_path / "index").glob("runs/*/plan.json"))


def test_run_above_confirm_bytes_with_yes_starts(large: Any) -> None:
    assert embed_corpus(large, permit=Permit(yes=True)).counts.documents == 8


def test_run_above_confirm_bytes_that_a_person_confirms_starts_and_asks_once(large: Any) -> None:
    questions: list[str] = []

    def ask(question: str) -> bool:
        questions.append(question)
        return True

    assert embed_corpus(large, permit=Permit(ask=ask)).counts.documents == 8
    assert embed_corpus(large, permit=Permit(ask=ask)).counts.documents == 8  # committed
    assert len(questions) == 1
    assert "confirm_bytes" in questions[0]


def test_run_above_confirm_bytes_that_a_person_declines_is_refused(large: Any) -> None:
    with pytest.raises(ConfigError, match="not started"):
        embed_corpus(large, permit=Permit(ask=lambda _: False))


def test_run_below_confirm_bytes_asks_nobody(large: Any) -> None:
    small = large.model_copy(update={"confirm_bytes": 10**12})
    assert embed_corpus(small, permit=Permit(ask=lambda _: False)).counts.documents == 8


def test_command_above_confirm_bytes_without_a_terminal_exits_with_2(
    large: Any, tmp_path: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(
        f"source: {{uri: {tmp_path / 'docs.parquet'}}}\nindex: {{uri: {tmp_path / 'index'}}}\n"
        "model: {name: 'builtin:tiny-m3', max_length: 64}\nconfirm_bytes: 100\n"
    )
    result = CliRunner().invoke(app, [str(tmp_path / "run.yaml")])
    assert result.exit_code == 2
    assert "more than confirm_bytes" in capfd.readouterr().err
    result = CliRunner().invoke(app, [str(tmp_path / "run.yaml"), "--yes"])
    assert result.exit_code == 0
