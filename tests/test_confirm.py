"""Nothing large is written unasked, and small corpora are not even sampled."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_estimate import corpus_of, estimate_of, planned, rows

from actors.errors import ConfigError
from pipelines.estimate.confirm import Permit, most_bytes
from pipelines.terminal.cli import silent
from pipelines.terminal.progress import Progress

__all__ = ["rows"]


def check(config, **how):
    """Whether a run may start, as it is asked before its plan is pinned."""
    Permit(**how).check(config, *planned(config), Progress(silent()))


@pytest.fixture
def large(tmp_path, make_config, rows, monkeypatch):
    """(a configuration whose limit is below what it writes, its estimate)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # no speed is known
    config = make_config(corpus_of(tmp_path, rows[:40]), confirm_bytes=1000)
    return config, estimate_of(config)


def test_run_above_the_limit_without_anyone_to_ask_is_refused(large):
    with pytest.raises(ConfigError, match=r"about [\d.]+ MB, .* confirm_bytes \(1 kB\)") as raised:
        check(large[0])
    assert raised.value.exit_code == 2
    assert "--yes" in raised.value.remedy
    assert "confirm_bytes" in raised.value.remedy


def test_question_holds_the_estimate_and_no_is_an_answer(large):
    asked = []
    with pytest.raises(ConfigError, match="not confirmed"):
        check(large[0], ask=asked.append)
    [question] = asked
    assert large[1].to_text() in question


def test_run_goes_on_when_the_answer_is_yes(large):
    check(large[0], ask=lambda question: True)


def test_run_with_yes_does_not_ask(large):
    check(large[0], yes=True, ask=pytest.fail)


@pytest.mark.parametrize("limit", [None, "exactly"])
def test_run_up_to_the_limit_does_not_ask(large, limit):
    config, estimate = large
    limit = limit and estimate.total_bytes
    check(config.model_copy(update={"confirm_bytes": limit}), ask=pytest.fail)


def test_run_one_byte_above_the_limit_is_refused(large):
    config, estimate = large
    with pytest.raises(ConfigError):
        check(config.model_copy(update={"confirm_bytes": estimate.total_bytes - 1}))


CONFIGURATIONS = {
    "all": {},
    "undivided": {"chunk": {"by": "none"}},
    "overlap": {"chunk": {"max_tokens": 24, "overlap": 16, "title_prefix": True}},
    "dense": {"outputs": ["dense"], "model": {"vector_dtype": "float32"}},
    "sparse": {"outputs": ["sparse"], "slice": {"documents": 1000}},
}


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_most_bytes_is_more_than_whatever_a_run_writes(tmp_path, make_config, rows, name, kind):
    folder = corpus_of(tmp_path, rows[:12], kind)
    config = make_config(folder, **CONFIGURATIONS[name])
    files, _, units = planned(config)
    assert most_bytes(config, files, units) >= estimate_of(config).total_bytes


def test_most_bytes_of_short_texts_counts_their_rows(tmp_path, make_config):
    n = 20_000
    table = pa.table({"id": list(map(str, range(n))), "text": ["a"] * n})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    (tmp_path / "a.parquet").write_bytes(sink.getvalue())
    config = make_config(
        tmp_path / "a.parquet", source={"columns": {"title": None, "metadata": []}}
    )
    files, _, units = planned(config)
    assert most_bytes(config, files, units) >= estimate_of(config).total_bytes


def test_small_corpus_is_not_even_read(tmp_path, make_config, rows, monkeypatch):
    monkeypatch.setattr("pipelines.estimate.confirm.estimate_run", pytest.fail)
    config = make_config(corpus_of(tmp_path, rows))
    check(config)  # 1 MB of text, 1 TB allowed
    check(config.model_copy(update={"confirm_bytes": None}))
