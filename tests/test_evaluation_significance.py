"""Permutation tests with p values known by counting, and close to those of a t test."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from actors.errors import ConfigError
from pipelines.evaluation.measures import (
    MEASURES,
    PerQuery,
    compare,
    compare_all,
    holm,
    permutation_p,
)


def per_query(values):
    return PerQuery(
        tuple(f"q{i:03}" for i in range(len(values))),
        dict.fromkeys(MEASURES, np.array(values, float)),
    )


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 1, 1, 1], 2 / 16),  # all one way: only all signs or none
        ([4, 3, -1], 4 / 8),  # 6, of sums 8, 6, 2, 0 and their opposites
        ([1, -1], 1.0),
        ([0.1] * 10, 2 / 1024),
        ([0.1] * 10 + [0.0] * 500, 2 / 1024),  # a query without a difference says nothing
        ([], 1.0),
        ([0, 0, 0], 1.0),
    ],
)
def test_p_of_few_differences_is_counted(differences, p):
    values = np.array(differences, float)
    assert permutation_p(values) == pytest.approx(p)


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.2])
def test_p_of_many_normal_differences_is_that_of_a_t_test(shift):
    values = np.random.default_rng(7).normal(shift, 0.3, 250)
    assert permutation_p(values) == pytest.approx(
        scipy.stats.ttest_1samp(values, 0).pvalue, abs=0.02
    )
    assert permutation_p(values) == permutation_p(values) == permutation_p(-values)
    assert permutation_p(values) >= 1 / 10_001


def test_p_between_equals_is_uniform():
    rng = np.random.default_rng(9)
    p_values = [permutation_p(rng.normal(0, 1, 12)) for _ in range(400)]
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.03)


def test_comparison_counts_wins_losses_and_ties():
    found = compare(per_query([0.1, 0.5, 0.3, 0.0]), per_query([0.4, 0.5, 0.2, 0.5]))
    assert set(found) == set(MEASURES)
    of = found["AP"]
    assert (of.wins, of.losses, of.ties) == (2, 1, 1)
    assert of.difference == pytest.approx((0.3 - 0.1 + 0.5) / 4)
    assert of.p == of.p_holm == pytest.approx(4 / 8)  # 0.7, 0.9 and their opposites of 8


def test_holm_corrects_from_the_smallest_up():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_several_systems_are_corrected_for_each_measure():
    base = per_query([0.0] * 10)
    found = compare_all(base, {"a": per_query([1.0] * 10), "b": per_query([0.0] * 10)})
    assert found["a"]["AP"].p == pytest.approx(2 / 1024)
    assert found["a"]["AP"].p_holm == pytest.approx(4 / 1024)
    assert found["b"]["AP"].p_holm == 1.0


def test_systems_that_answered_different_queries_are_refused():
    with pytest.raises(ConfigError, match="found 3 and 4, 3 of them on both"):
        compare(per_query([0.0] * 3), per_query([0.0] * 4))
