"""TREC run files: written for every tool, read back as they were."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from actors.errors import SourceError
from pipelines.evaluation.measures import measure
from pipelines.evaluation.runs import read_trec_run, write_run

RANKINGS = {
    "q1": {"z": 0.75, "a": 0.5, "m n": 0.5, "b": 0.5, "c": -1.0},
    "ü": {"b": 1e-30, "a": 0.0, "c": 0.0},
}


def order(rankings):
    return {query: list(ranking) for query, ranking in rankings.items()}


def test_run_is_read_back_in_the_search_s_order_with_its_scores(tmp_path):
    write_run(tmp_path / "runs/dense.run", RANKINGS, "dense")
    found = read_trec_run(str(tmp_path / "runs/dense.run"))
    assert order(found) == order(RANKINGS)
    for query, ranking in found.items():
        np.testing.assert_allclose(
            list(ranking.values()), list(RANKINGS[query].values()), rtol=1e-6, atol=1e-40
        )


def test_run_has_trec_s_columns_and_falling_scores(tmp_path):
    write_run(tmp_path / "dense.run", RANKINGS, "dense")
    rows = [line.split("\t") for line in (tmp_path / "dense.run").read_text().splitlines()]
    assert rows[0] == ["q1", "Q0", "z", "1", "0.75", "dense"]
    assert [row[3] for row in rows] == ["1", "2", "3", "4", "5", "1", "2", "3"]
    for query in RANKINGS:
        scores = np.array([row[4] for row in rows if row[0] == query], np.float32)
        assert (np.diff(scores) < 0).all()


def test_tools_that_sort_by_score_see_the_same_ranking(tmp_path):
    """trec_eval would put equal scores in the order of z to a."""
    import ir_measures

    rankings = {"q": {"a": 1.0, "b": 1.0, "c": 1.0}}
    qrels = {"q": {"b": 1}}
    write_run(tmp_path / "x.run", rankings, "x")
    theirs = ir_measures.read_trec_run(str(tmp_path / "x.run"))
    (value,) = ir_measures.calc_aggregate([ir_measures.AP], qrels, theirs).values()
    assert value == measure(qrels, rankings).values["AP"][0] == 0.5


def test_run_of_another_system_is_ordered_by_score_then_rank(tmp_path):
    path = tmp_path / "other.run.gz"
    path.write_bytes(
        gzip.compress(b"q Q0 a 3 1.5 bm25\nq Q0 b 2 1.5 bm25\nq Q0 c 1 -2e1 bm25\nq Q0 d 4 9 x\n")
    )
    assert read_trec_run(str(path)) == {"q": {"d": 9.0, "b": 1.5, "a": 1.5, "c": -20.0}}
    assert order(read_trec_run(str(path))) == {"q": ["d", "b", "a", "c"]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("q Q0 a 1 1.5\n", "line 1: expected query, Q0, document, .*, found 5 columns"),
        ("q Q0 a 1 high x\n", "line 1: expected numbers as rank and score, found '1' and 'high'"),
        ("q Q0 a 1 nan x\n", "line 1: expected numbers"),
        ("q Q0 a 1 2 x\nq Q0 a 2 1 x\n", "line 2: expected each document once .* 'a' again"),
        ("\n", "expected a TREC run, found an empty file"),
    ],
)
def test_bad_run_is_refused_with_the_line(tmp_path, content, expected):
    (tmp_path / "x.run").write_text(content)
    with pytest.raises(SourceError, match=expected):
        read_trec_run(str(tmp_path / "x.run"))
