"""The page of an evaluation: what it shows, escaped, and that it loads nothing."""

from __future__ import annotations

import re

import numpy as np
from judged_by_hand import GOOD, POOR, QRELS, evaluation

from pipelines.evaluation.charts import gains_chart, lengths_chart, lengths_of_relevant
from pipelines.evaluation.dataset import JudgedQueries
from pipelines.evaluation.report import Documents, documents_shown, evaluation_page

EVIL = "<script>alert('x')</script> & \"ünicode\" $x$"
JUDGED = JudgedQueries({query: f"{EVIL} {query}?" for query in QRELS}, QRELS)
DOCUMENTS = Documents(
    {"d0": EVIL, "x": "a wrong one " * 50}, {f"d{i}": 100 * (i + 1) for i in range(10)}
)


def text_of(html):
    return re.sub(
        r"\s+", " ", re.sub(r"<svg.*?</svg>|<style.*?</style>|<[^>]*>", " ", html, flags=re.S)
    )


def test_page_shows_modes_comparisons_lengths_and_queries():
    text = text_of(evaluation_page(evaluation(), JUDGED, DOCUMENTS))
    for words in (
        *("Evaluation of out/[x]", "Generation 2, m; test.tsv", "judged queries 9"),
        *("1 of 9 relevant documents are not in the index", "0.565", "1.000–1.000"),
        *("Gains and losses against dense", "sparse minus dense", "colbert minus dense"),
        *("9 queries better, 0 worse, 0 the same", "Length of the first relevant document"),
        *("Where sparse is better than dense by most", "What dense answers worst"),
        *("q7?", "nothing found", "first of dense"),
    ):
        assert words in text
    assert "Where sparse is worse" not in text


def test_texts_of_queries_and_documents_are_escaped_and_cut():
    html = evaluation_page(evaluation(), JUDGED, DOCUMENTS)
    assert "<script" not in html
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp;" in html
    assert "a wrong one " * 16 + "a wrong…" in html
    assert "://" not in html


def test_page_without_documents_shows_their_ids():
    text = text_of(evaluation_page(evaluation(), JUDGED))
    assert "d3" in text
    assert "Length of the first" not in text


def test_page_of_one_mode_compares_nothing():
    text = text_of(evaluation_page(evaluation({"dense": POOR}), JUDGED))
    assert "Gains and losses" not in text
    assert "What dense answers worst" in text


def test_page_of_a_perfect_mode_has_no_worst_queries():
    text = text_of(evaluation_page(evaluation({"dense": GOOD}), JUDGED))
    assert "answers worst" not in text


def test_documents_shown_are_the_relevant_and_the_first_found():
    shown = documents_shown(evaluation(), JUDGED)
    assert shown == {f"d{i}" for i in range(8)} | {"x"}


def test_gains_are_drawn_for_each_query_or_for_a_sample_of_many():
    qrels = {f"q{i:05}": {"d": 1} for i in range(2000)}
    half = {query: {"d": 1.0} for i, query in enumerate(qrels) if i % 2}
    found = evaluation({"dense": {}, "sparse": half}, qrels)
    chart = gains_chart(found, found.mode("sparse"))
    assert chart.caption.startswith("1,000 queries better, 0 worse, 1,000 the same; +0.500 on")
    assert len(chart.html()) < 100_000


def test_length_is_of_the_first_relevant_document_or_the_shortest_missed():
    found = evaluation()
    dense = found.mode("dense")
    lengths = lengths_of_relevant(dense, found.query_ids, QRELS, DOCUMENTS.lengths)
    assert lengths == [100, 200, 300, 400, 500, 600, 700, 800, 100]
    assert lengths_of_relevant(dense, found.query_ids, QRELS, {"d9": 5}) == [None] * 9
    chart = lengths_chart(dense, lengths)
    (axes,) = chart.figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2-3\n8", "none\n1"]
    middles = [line.get_ydata()[0] for line in axes.lines if len(line.get_ydata()) == 1]
    assert middles == [np.median([*lengths[:7], 100]), 800]
    assert lengths_chart(dense, [None] * 9) is None
