"""An evaluation as a record and as tables: what was measured comes back, and is shown."""

from __future__ import annotations

import json

import pytest
from judged_by_hand import GOOD, POOR, QRELS, evaluation
from rich.console import Console

from actors.errors import ConfigError, SourceError
from pipelines.evaluation.measures import MEASURES, compare, mean_of, measure
from pipelines.evaluation.results import (
    compare_evaluations,
    comparison_table,
    evaluate_modes,
    in_words,
    read_evaluation,
    table,
)


def printed(shown, width=80):
    console = Console(width=width, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(shown)
    return captured.get()


def test_modes_are_measured_and_compared_with_the_baseline():
    found = evaluation(settings={"sparse": {"weight": 2}})
    dense, sparse, colbert = found.modes
    assert [mode.name for mode in found.modes] == ["dense", "sparse", "colbert"]
    assert sparse.measures == {m: mean_of(measure(QRELS, GOOD), m) for m in MEASURES}
    assert dense.measures["RR@10"].mean == pytest.approx(4 / 9)
    assert dense.against_baseline == {}
    alone = compare(measure(QRELS, POOR), measure(QRELS, GOOD))
    assert sparse.against_baseline["AP"].p == alone["AP"].p
    assert sparse.against_baseline["AP"].p_holm == pytest.approx(2 * alone["AP"].p)
    assert colbert.against_baseline["AP"].ties == 9
    assert (sparse.settings, dense.settings) == ({"weight": 2}, {})
    assert dense.first_relevant == [*((2, f"d{i}") for i in range(7)), None, (2, "d0")]
    assert dense.top == ["x"] * 7 + [None, "x"]


def test_evaluation_is_read_back_as_it_was_written(tmp_path):
    found = evaluation()
    (tmp_path / "eval.json").write_bytes(found.to_bytes())
    again = read_evaluation(str(tmp_path / "eval.json"))
    assert again == found
    again_measured = again.per_query("sparse")
    assert again_measured.query_ids == tuple(sorted(QRELS))
    assert again_measured.values["AP"].tolist() == measure(QRELS, GOOD).values["AP"].tolist()


def test_eval_json_is_plain_and_has_its_keys():
    record = json.loads(evaluation().to_bytes())
    assert record["format_version"] == 1
    assert record["dataset"] == {
        "queries": "queries.jsonl",
        "qrels": "test.tsv",
        "judged_queries": 9,
        "judgements": 10,
        "relevant_documents": 9,
        "unknown_documents": 1,
    }
    sparse = record["modes"][1]
    assert set(sparse["measures"]["nDCG@10"]) == {"mean", "low", "high"}
    assert set(sparse["against_baseline"]["AP"]) == {
        *("difference", "p", "p_holm", "wins", "losses", "ties")
    }
    assert len(sparse["per_query"]["R@100"]) == len(record["query_ids"]) == 9


@pytest.mark.parametrize("content", ["{", "{}", '{"format_version": 2}'])
def test_what_is_no_evaluation_is_refused(tmp_path, content):
    (tmp_path / "eval.json").write_text(content)
    with pytest.raises(SourceError, match=r"eval\.json"):
        read_evaluation(str(tmp_path / "eval.json"))


def test_identical_ids_are_left_out_of_every_number():
    qrels = {"a": {"b": 1}}
    (mode,) = evaluate_modes(
        qrels, {"dense": {"a": {"a": 2.0, "b": 1.0}}}, ignore_identical_ids=True
    )
    assert (mode.first_relevant, mode.top) == ([(1, "b")], ["b"])
    assert mode.measures["RR@10"].mean == 1


def test_baseline_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="expected the baseline 'dense', found bm25"):
        evaluate_modes(QRELS, {"bm25": GOOD})
    with pytest.raises(ConfigError, match="expected the mode 'rrf', found dense, sparse, colbert"):
        evaluation().per_query("rrf")


def test_two_evaluations_are_compared_mode_by_mode():
    before, after = evaluation(), evaluation({"dense": GOOD, "colbert": POOR, "rrf": GOOD})
    found = compare_evaluations(before, after)
    assert list(found) == ["dense", "colbert"]
    assert found["dense"]["AP"].wins == 9
    assert found["dense"]["AP"].p_holm == pytest.approx(2 * 2 / 512)
    assert found["colbert"]["AP"].difference == 0


def test_evaluations_of_other_queries_or_modes_are_refused():
    fewer = {query: QRELS[query] for query in ("q1", "q2")}
    with pytest.raises(ConfigError, match="found 9 and 2, 2 of them on both"):
        compare_evaluations(evaluation(), evaluation(qrels=fewer))
    other = evaluation().model_copy(update={"modes": []})
    with pytest.raises(ConfigError, match="expected a mode that both"):
        compare_evaluations(evaluation(), other)


def test_table_shows_means_intervals_and_p_in_eighty_columns():
    text = printed(table(evaluation()))
    assert "…" not in text
    for word in (
        "mode",
        *MEASURES,
        "p",
        "dense",
        "0.444",
        "1.000–1.000",
        "0.008",
        "Holm-corrected",
    ):
        assert word in text
    sparse = next(line for line in text.splitlines() if "sparse" in line)
    assert sparse.split() == ["sparse", "1.000", "1.000", "1.000", "1.000", "0.008"]


def test_comparison_table_shows_each_mode_by_each_measure():
    text = printed(comparison_table(evaluation(), evaluation({"dense": GOOD})))
    assert "…" not in text
    rows = [line.split() for line in text.splitlines() if "+" in line]
    assert rows[0] == ["dense", "nDCG@10", "0.565", "1.000", "+0.435", "0.004", "9/0/0"]
    assert [row[-6] for row in rows] == list(MEASURES)


def test_small_p_is_a_bound():
    assert [in_words(p) for p in (0.00009, 0.001, 0.0499, 1)] == [
        "<0.001",
        "0.001",
        "0.050",
        "1.000",
    ]
