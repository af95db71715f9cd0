"""Measures by their formulas, written out here, and the intervals of their means."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import scipy.stats

from actors.errors import ConfigError
from pipelines.evaluation.measures import (
    MEASURES,
    PerQuery,
    first_relevant,
    mean_of,
    measure,
    without_identical_ids,
)


def ranked(*documents, score=None):
    return {doc: float(-i) if score is None else score for i, doc in enumerate(documents)}


def by_formula(judged, documents):
    """nDCG@10 with linear gains, recall at 100, reciprocal rank at 10, average precision."""
    gains = [max(judged.get(doc, 0), 0) for doc in documents]
    best = sorted((max(rel, 0) for rel in judged.values()), reverse=True)
    relevant = sum(rel > 0 for rel in judged.values())

    def dcg(values):
        return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(values[:10], start=1))

    ranks = [rank for rank, gain in enumerate(gains, start=1) if gain]
    precisions = [found / rank for found, rank in enumerate(ranks, start=1)]
    return {
        "nDCG@10": dcg(gains) / dcg(best) if relevant else 0.0,
        "R@100": sum(rank <= 100 for rank in ranks) / relevant if relevant else 0.0,
        "RR@10": 1 / ranks[0] if ranks and ranks[0] <= 10 else 0.0,
        "AP": sum(precisions) / relevant if relevant else 0.0,
    }


def test_ndcg_of_a_small_ranking_is_the_number_on_paper():
    """Gains 0, 2, 1 where 2, 1, 1 were possible."""
    found = measure({"q": {"a": 2, "b": 1, "c": 1}}, {"q": ranked("x", "a", "b")})
    expected = (2 / math.log2(3) + 1 / 2) / (2 + 1 / math.log2(3) + 1 / 2)
    assert found.values["nDCG@10"][0] == pytest.approx(expected)
    assert found.values["R@100"][0] == pytest.approx(2 / 3)
    assert found.values["RR@10"][0] == pytest.approx(1 / 2)
    assert found.values["AP"][0] == pytest.approx((1 / 2 + 2 / 3) / 3)


def test_measures_of_many_rankings_are_those_of_their_formulas():
    rng = np.random.default_rng(1)
    documents = [f"d{i}" for i in range(150)]
    qrels, rankings = {}, {}
    for i in range(40):
        judged = rng.choice(documents, rng.integers(1, 20), replace=False)
        qrels[f"q{i}"] = {doc: int(rng.integers(-1, 4)) for doc in judged}
        rankings[f"q{i}"] = ranked(*rng.permutation(documents)[: rng.integers(1, 150)])
    found = measure(qrels, rankings)
    assert found.query_ids == tuple(sorted(qrels))
    for i, query in enumerate(found.query_ids):
        expected = by_formula(qrels[query], list(rankings[query]))
        assert {name: found.values[name][i] for name in MEASURES} == pytest.approx(expected)


def test_equal_scores_keep_the_order_of_the_search():
    qrels = {"q": {"b": 1}}
    for documents, rr in ((("a", "b", "c"), 1 / 2), (("b", "c", "a"), 1), (("c", "a", "b"), 1 / 3)):
        found = measure(qrels, {"q": ranked(*documents, score=0.5)})
        assert found.values["RR@10"][0] == pytest.approx(rr)
        assert found.values["AP"][0] == pytest.approx(rr)


def test_query_without_results_counts_zero_and_one_without_judgements_not():
    qrels = {"q2": {"a": 1}, "q1": {"a": 1}, "ü": {"a": 1}}
    rankings = {"q2": ranked("a"), "ü": {}, "unjudged": ranked("a")}
    found = measure(qrels, rankings)
    assert found.query_ids == ("q1", "q2", "ü")
    for values in found.values.values():
        assert values.tolist() == [0, 1, 0]
    assert measure(qrels, {}).values["AP"].tolist() == [0, 0, 0]


def test_identical_ids_are_no_results_where_asked():
    qrels, rankings = {"q": {"a": 1}}, {"q": ranked("q", "a")}
    assert measure(qrels, rankings).values["RR@10"][0] == 0.5
    assert measure(qrels, without_identical_ids(rankings)).values["RR@10"][0] == 1
    assert rankings == {"q": ranked("q", "a")}


def test_first_relevant_is_none_where_nothing_was_found():
    qrels = {"q": {"a": 1, "x": 0}, "r": {"b": 1}, "s": {"b": 1}}
    rankings = {"q": ranked("x", "y", "a"), "r": ranked("a")}
    assert first_relevant(qrels, rankings) == {"q": (3, "a"), "r": None, "s": None}


def test_interval_of_many_values_is_that_of_a_normal_mean():
    values = np.random.default_rng(3).beta(0.5, 0.5, 2000)
    found = mean_of(PerQuery(tuple(map(str, range(2000))), {"AP": values}), "AP")
    half = 1.96 * scipy.stats.sem(values)
    assert found.mean == pytest.approx(values.mean())
    bounds = (found.mean - half, found.mean + half)
    assert (found.low, found.high) == pytest.approx(bounds, abs=0.001)


def test_interval_is_the_same_each_time_and_a_point_for_equal_values():
    values = PerQuery(("a", "b"), {"AP": np.array([0.0, 1.0])})
    assert mean_of(values, "AP") == mean_of(values, "AP")
    same = mean_of(PerQuery(("a", "b"), {"AP": np.array([0.25, 0.25])}), "AP")
    assert (same.mean, same.low, same.high) == (0.25, 0.25, 0.25)
    one = mean_of(PerQuery(("a",), {"AP": np.array([0.5])}), "AP")
    assert (one.mean, one.low, one.high) == (0.5, 0.5, 0.5)


def test_measures_without_the_extra_say_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(ConfigError, match="the package ir_measures") as caught:
        measure({"q": {"a": 1}}, {})
    assert caught.value.remedy == "pip install 'packvec[eval]'"
