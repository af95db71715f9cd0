"""Nothing large is written unasked, and small corpora are not even sampled."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_estimate import corpus_of, estimate_of, planned, rows

from actors.errors import ConfigError
from pipelines.estimate.confirm import confirm, could_exceed

__all__ = ["rows"]


@pytest.fixture
def large(tmp_path, make_config, rows):
    """(a configuration whose limit is below what it writes, its estimate)."""
    config = make_config(corpus_of(tmp_path, rows[:40]), confirm_bytes=1000)
    return config, estimate_of(config)


def test_confirm_above_the_limit_without_anyone_to_ask_is_refused(large):
    with pytest.raises(ConfigError, match=r"about [\d.]+ MB, .* confirm_bytes \(1 kB\)") as raised:
        confirm(*large, yes=False)
    assert raised.value.exit_code == 2
    assert "--yes" in raised.value.remedy
    assert "confirm_bytes" in raised.value.remedy


def test_confirm_asks_with_the_estimate_and_takes_no_for_an_answer(large):
    asked = []
    with pytest.raises(ConfigError, match="not confirmed"):
        confirm(*large, yes=False, ask=asked.append)
    [question] = asked
    assert large[1].to_text() in question


def test_confirm_goes_on_when_the_answer_is_yes(large):
    confirm(*large, yes=False, ask=lambda question: True)


def test_confirm_with_yes_does_not_ask(large):
    confirm(*large, yes=True, ask=pytest.fail)


@pytest.mark.parametrize("limit", [None, "exactly"])
def test_confirm_up_to_the_limit_does_not_ask(large, limit):
    config, estimate = large
    limit = limit and estimate.total_bytes
    confirm(
        config.model_copy(update={"confirm_bytes": limit}), estimate, yes=False, ask=pytest.fail
    )


def test_confirm_one_byte_above_the_limit_is_refused(large):
    config, estimate = large
    config = config.model_copy(update={"confirm_bytes": estimate.total_bytes - 1})
    with pytest.raises(ConfigError):
        confirm(config, estimate, yes=False)


CONFIGURATIONS = {
    "all": {},
    "undivided": {"chunk": {"by": "none"}},
    "overlap": {"chunk": {"max_tokens": 24, "overlap": 16, "title_prefix": True}},
    "dense": {"outputs": ["dense"], "model": {"vector_dtype": "float32"}},
    "sparse": {"outputs": ["sparse"], "slice": {"documents": 1000}},
}


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_could_exceed_is_true_of_whatever_a_run_writes(tmp_path, make_config, rows, name, kind):
    folder = corpus_of(tmp_path, rows[:12], kind)
    config = make_config(folder, **CONFIGURATIONS[name])
    config = config.model_copy(update={"confirm_bytes": estimate_of(config).total_bytes - 1})
    files, _, units = planned(config)
    assert could_exceed(config, files, units)


def test_could_exceed_of_short_texts_counts_their_rows(tmp_path, make_config):
    n = 20_000
    table = pa.table({"id": list(map(str, range(n))), "text": ["a"] * n})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    (tmp_path / "a.parquet").write_bytes(sink.getvalue())
    config = make_config(
        tmp_path / "a.parquet", source={"columns": {"title": None, "metadata": []}}
    )
    config = config.model_copy(update={"confirm_bytes": estimate_of(config).total_bytes - 1})
    files, _, units = planned(config)
    assert could_exceed(config, files, units)


def test_could_exceed_is_false_of_a_small_corpus_so_that_it_need_not_be_read(
    tmp_path, make_config, rows
):
    config = make_config(corpus_of(tmp_path, rows))
    files, _, units = planned(config)
    assert not could_exceed(config, files, units)  # 1 MB of text, 1 TB allowed
    assert not could_exceed(config.model_copy(update={"confirm_bytes": None}), files, units)
