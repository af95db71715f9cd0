"""An index to look at: what its pieces show, and what they say where an index lacks something."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import config_for

from actors.config import OUTPUTS
from actors.errors import IndexStateError
from actors.scoring import colbert_matrix, dense_matrix
from actors.token_names import TokenNames
from pipelines.embed_corpus import embed_corpus
from pipelines.explore import Exploration, explore
from pipelines.explore.charts import Alignment, Topics, alignment_chart, topics_chart
from pipelines.reports.html import Chart, Note, Table


def embedded(folder: Path, articles: pa.Table, outputs: list[str], **sections) -> Exploration:
    folder.mkdir(exist_ok=True)
    pq.write_table(articles, folder / "docs.parquet")
    sections["index"] = {"uri": str(folder / "index")} | sections.get("index", {})
    config = config_for(
        folder / "docs.parquet",
        outputs=outputs,
        search={"folder": str(folder / "search")},
        **sections,
    )
    embed_corpus(config)
    return explore(config.index.uri)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, articles: pa.Table) -> Exploration:
    return embedded(tmp_path_factory.mktemp("explore"), articles.slice(0, 12), list(OUTPUTS))


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<style.*?</style>|<[^>]*>", " ", html, flags=re.S))


def test_facts_name_what_is_in_the_index(seen: Exploration) -> None:
    text = text_of(seen.facts()._repr_html_())
    rows = seen.index.to_table(["doc_id"]).num_rows
    assert f"documents 12 passages {rows} generation 1" in text
    assert "vectors dense (64), sparse, colbert (64); float16" in text


def test_passages_are_spread_over_the_index_and_the_example_is_in_its_middle(
    seen: Exploration,
) -> None:
    ids = seen.index.to_table(["passage_id"])["passage_id"].to_pylist()
    shown = [row[0] for row in seen.passages().rows]
    assert len(shown) == 8
    assert {shown[0], shown[-1]} == {ids[0], ids[-1]}
    assert abs(ids.index(seen.example) - len(ids) / 2) <= 1


def test_neighbours_are_those_of_comparing_all_stored_vectors(seen: Exploration) -> None:
    rows = seen.index.to_table()
    own = rows.filter(np.array(rows["passage_id"].to_pylist()) == seen.example)
    for mode, scored in (("dense", dense_matrix), ("colbert", colbert_matrix)):
        scores = scored(own[mode], rows[mode])[0]
        best = [rows["passage_id"][int(i)].as_py() for i in np.argsort(-scores, kind="stable")]
        (table,) = seen.neighbours(seen.example, 5, mode=mode).blocks  # type: ignore[arg-type]
        assert isinstance(table, Table)
        assert [row[1] for row in table.rows] == [i for i in best if i != seen.example][:5]
    section = seen.neighbours(seen.example, 3, mode="hybrid")
    (table,) = section.blocks
    assert isinstance(table, Table)
    assert list(table.header[:4]) == ["hybrid", *OUTPUTS]
    assert section.lead.startswith(f"Most similar to {seen.example}, ")


def test_sparse_tokens_are_those_stored_the_heaviest_first(seen: Exploration) -> None:
    chart = seen.sparse_tokens(seen.example, 5)
    assert isinstance(chart, Chart)
    axes = chart.figure.axes[0]
    rows = seen.index.to_table(["passage_id", "sparse"]).to_pylist()
    stored = next(row["sparse"] for row in rows if row["passage_id"] == seen.example)
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx(sorted(stored["values"], reverse=True)[:5])
    assert f"the 5 heaviest of {len(stored['values'])}" in chart.caption


def test_topics_are_drawn_for_all_passages_or_a_sample(seen: Exploration) -> None:
    chart = seen.topics(3)
    assert isinstance(chart, Chart)
    n = seen.index.passages
    assert chart.title == f"Topics of {n} passages"
    assert chart.caption.startswith("All passages")
    lines = chart.figure.axes[0].lines
    assert sum(len(line.get_xdata()) for line in lines) == n
    small = Exploration(seen.index, 9).topics(2)
    assert isinstance(small, Chart)
    assert small.title == "Topics of 9 passages"
    assert small.caption.startswith(f"A sample of the {n} passages")
    assert isinstance(Exploration(seen.index, 3).topics(), Note)


def test_alignment_without_a_passage_is_with_the_best_one(seen: Exploration) -> None:
    query = "a month of the year"
    chart = seen.alignment(query)
    assert isinstance(chart, Chart)
    rows = seen.index.to_table(["title", "colbert"])
    scores = colbert_matrix(seen._encoder.encode_queries([query])["colbert"], rows["colbert"])[0]
    best = rows["title"][int(np.argmax(scores))].as_py()
    assert chart.title == f"ColBERT, {scores.max():.4f}: “{query}” in {best}"
    assert isinstance(seen.alignment(query, seen.example), Chart)


def test_passage_that_is_not_there_is_named(seen: Exploration) -> None:
    for look in (seen.neighbours, seen.sparse_tokens, lambda p: seen.alignment("q", p)):
        with pytest.raises(IndexStateError, match="expected a passage 'x#0', found none"):
            look("x#0")


def test_index_without_an_output_says_so(tmp_path: Path, articles: pa.Table) -> None:
    sparse = embedded(tmp_path / "sparse", articles.slice(0, 3), ["sparse"])
    for note in (sparse.topics(), sparse.alignment("q")):
        assert isinstance(note, Note)
        assert note.text.endswith("It has sparse.")
    (table,) = sparse.neighbours(sparse.example, 2).blocks
    assert isinstance(table, Table)
    assert table.header[0] == "sparse"
    colbert = embedded(
        tmp_path / "c", articles.slice(0, 3), ["colbert"], index={"store_text": False}
    )
    assert isinstance(colbert.sparse_tokens(colbert.example), Note)
    note = colbert.alignment("q")
    assert isinstance(note, Note)
    assert "stores no text" in note.text
    assert colbert.passages().rows[0][2] == ""


def test_alignment_frames_the_best_cell_of_each_query_token() -> None:
    similarity = np.array([[0.1, 0.9, 0.2], [0.8, -0.1, 0.3]], np.float32)
    chart = alignment_chart(Alignment(["a", "b"], ["x", "y", " "], similarity, 0.85), "a b", "T")
    assert chart.title == "ColBERT, 0.8500: “a b” in T"
    axes = chart.figure.axes[0]
    (cells,) = axes.collections
    assert len(cells.get_paths()) == 6
    centres = [np.mean(frame.get_corners(), axis=0) for frame in axes.patches]
    assert np.array(centres) == pytest.approx(np.array([[1, 0], [0, 1]]))
    chart.html()  # gives the cells their colours
    strengths = cells.get_facecolor()[:, 3]
    assert np.argmax(strengths) == 1
    assert np.argmin(strengths) == 4
    assert [label.get_text() for label in axes.get_xticklabels()] == ["x", "y", "␣"]
    assert "Shown" not in chart.caption


def test_alignment_of_long_texts_shows_a_part_and_says_so() -> None:
    rng = np.random.default_rng(0)
    similarity = rng.random((30, 500), np.float32)
    chart = alignment_chart(Alignment(["q"] * 30, ["p"] * 500, similarity, 0.5), "q", "T")
    assert re.search(r"Shown: 24 of 30 query tokens, \d\d of 500 passage", chart.caption)
    assert len(chart.html()) < 600_000


def test_topics_have_names_beside_and_in_the_map_with_markup_as_text() -> None:
    names = [["<b>&", "two"], ["$x$ $y$"]]
    xy = np.array([[0, 0], [1, 1], [0, 1], [5, 5]], np.float32)
    html = topics_chart(Topics(np.array([0, 0, 0, 1]), names, xy), 4).html()
    assert html.count("&lt;b&gt;&amp;") == 2
    assert html.count("$x$ $y$") == 2
    assert "<b>" not in html


def test_token_names_of_ids_are_their_decoded_tokens(seen: Exploration) -> None:
    names: TokenNames = seen._names
    ids = seen._encoder.tokenize_queries(["bees"]).values.tolist()
    assert names.of_ids(ids)[0] == "<s>"
    assert names.of_ids(ids[1:]) == ["▁be", "es", "</s>"]
