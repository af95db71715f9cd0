"""What there is to see in an index, on vectors whose answer is known."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from generations_by_hand import History

from actors.config import ModelConfig
from actors.encoder import Encoder, load_encoder
from actors.errors import ConfigError, IndexStateError
from actors.models.location import locate
from actors.scoring import colbert_pairs
from actors.token_names import TokenNames
from actors.vectors import fixed_size_lists
from pipelines.config.sections import ChunkConfig
from pipelines.explore.charts import (
    Alignment,
    align,
    columns_shown,
    find_topics,
    read_passage,
    read_sample,
)
from pipelines.index import open_index
from pipelines.store import open_store

M3 = ModelConfig(
    name="builtin:tiny-m3", outputs=("colbert",), dtype="float32", device="cpu", max_length=32
)


@pytest.fixture
def history(tmp_path: Path) -> History:
    """Three parts of two documents; one of them is replaced and one deleted."""
    history = History(open_store(str(tmp_path / "index")))
    history.add({f"d{i}": (f"T{i}", f"a{i}", f"b{i}") for i in range(6)})
    history.add({"d0": ("T0", "new")}, delete=["d3"], parent=1)
    return history


def groups(sizes: list[int]) -> pa.Table:
    """Passages around so many directions; each group has words of its own and one of all."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(len(sizes)), sizes)
    dense = np.eye(8)[group] + rng.normal(0, 0.05, (len(group), 8))
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    return pa.table(
        {
            "passage_id": [f"p{i}#0" for i in range(len(group))],
            "title": [f"of {g}" for g in group],
            "dense": fixed_size_lists(dense.astype(np.float16)),
        }
    )


@cache
def encoder() -> Encoder:
    return load_encoder(M3)


@cache
def names() -> TokenNames:
    return TokenNames(locate("builtin:tiny-m3"))


def test_sample_of_all_rows_is_the_live_view(history: History) -> None:
    index = open_index(history.store.uri)
    live = sorted(index.to_table(["passage_id"])["passage_id"].to_pylist())
    sample = read_sample(index, ["passage_id", "dense"], 100)
    assert sorted(sample["passage_id"].to_pylist()) == live
    assert len(live) == 9
    some = read_sample(index, ["passage_id"], 3)["passage_id"].to_pylist()
    in_order = sample["passage_id"].to_pylist()
    assert some == [in_order[0], in_order[4], in_order[8]]


def test_passage_is_found_by_its_id_as_it_lives(history: History) -> None:
    index = open_index(history.store.uri)
    assert read_passage(index, "d0#0", ["text"]).to_pylist() == [{"text": "new"}]
    assert read_passage(index, "d5#1", ["title", "text"])["text"].to_pylist() == ["b5"]
    for gone in ("d0#1", "d3#0", "nothing"):
        with pytest.raises(IndexStateError, match=f"expected a passage '{gone}', found none"):
            read_passage(index, gone, ["text"])


def test_topics_are_the_groups_the_largest_first_named_by_a_title() -> None:
    sizes = [10, 30, 20]
    topics = find_topics(groups(sizes), 3, None)
    assert topics is not None
    assert topics.topic_N.tolist() == [2] * 10 + [0] * 30 + [1] * 20
    assert topics.names == [["of 1"], ["of 2"], ["of 0"]]
    for group in range(3):  # on the map, too, each is on its own
        own = topics.xy_N2[topics.topic_N == group]
        others = topics.xy_N2[topics.topic_N != group]
        centre = own.mean(axis=0)
        spread = np.linalg.norm(own - centre, axis=1).max()
        assert np.linalg.norm(others - centre, axis=1).min() > spread


def test_topics_of_an_index_with_sparse_vectors_are_named_by_its_tokens() -> None:
    words = {name: names()._tokenizer.token_to_id(name) for name in ("▁ab", "▁cd", "▁ef", "▁is")}
    sample = groups([12, 8])
    own = [words["▁ab"]] * 12 + [words["▁cd"]] * 8
    rows = [{i: 0.5, words["▁is"]: 0.9} | ({words["▁ef"]: 0.2} if i == own[0] else {}) for i in own]
    lists = [[sorted(row) for row in rows], [[row[i] for i in sorted(row)] for row in rows]]
    types = (pa.list_(pa.int32()), pa.list_(pa.float32()))
    arrays = [pa.array(values, kind) for values, kind in zip(lists, types, strict=True)]
    sparse = pa.StructArray.from_arrays(arrays, ["indices", "values"])
    topics = find_topics(sample.append_column("sparse", sparse), 2, names())
    assert topics is not None
    assert topics.names == [["ab", "ef"], ["cd"]]


def test_topics_of_a_few_different_passages_are_none_and_equal_ones_lie_together() -> None:
    assert find_topics(groups([7]), 3, None) is None
    assert find_topics(groups([9]).slice(0, 0), 3, None) is None
    assert find_topics(groups([1]).take(pa.array([0] * 30)), 3, None) is None
    rows = pa.array([0] * 30 + [*range(1, 9)])
    topics = find_topics(groups([5, 4]).take(rows), 12, None)
    assert topics is not None
    assert len(topics.names) == 4
    assert len(np.unique(topics.xy_N2[:30], axis=0)) == 1


def test_topics_without_scikit_learn_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ConfigError, match="notebooks: expected the package") as error:
        find_topics(groups([12]), 2, None)
    assert error.value.remedy == "pip install 'packvec[notebooks]'"


@pytest.mark.parametrize("title_prefix", [False, True])
def test_alignment_is_of_the_tokens_that_have_vectors(title_prefix: bool) -> None:
    chunk = ChunkConfig(title_prefix=title_prefix)
    text = "abacus\nof bees" if title_prefix else "of bees"
    passage = encoder().encode_passages([text])
    row = passage.append_column("title", [["abacus"]]).append_column("text", [["of bees"]])
    found = align(encoder(), chunk, names(), "old bees", row)
    assert "".join(found.passage_tokens).replace("▁", " ").split() == [
        *text.split()[:-1],
        "bees</s>",
    ]
    assert found.query_tokens[-1] == "</s>"
    queries = encoder().encode_queries(["old bees"])
    assert found.score == colbert_pairs(queries["colbert"], passage["colbert"])[0]
    assert found.similarity_QP.max(axis=1).mean() == pytest.approx(found.score, abs=1e-6)
    assert found.similarity_QP.shape == (len(found.query_tokens), len(found.passage_tokens))


def test_alignment_of_a_truncated_passage_names_the_tokens_that_were_kept() -> None:
    text = "bees and wasps " * 20
    row = encoder().encode_passages([text]).append_column("title", pa.nulls(1, pa.string()))
    found = align(encoder(), ChunkConfig(), names(), "bees", row.append_column("text", [[text]]))
    assert len(found.passage_tokens) == 31
    assert found.passage_tokens[-1] == "</s>"


def test_alignment_of_another_text_is_refused() -> None:
    row = encoder().encode_passages(["a long text of bees"]).append_column("title", [["t"]])
    with pytest.raises(IndexStateError, match=r"passage: expected .* tokens, found"):
        align(encoder(), ChunkConfig(), names(), "bees", row.append_column("text", [["a"]]))


@pytest.mark.parametrize(
    ("best", "tokens", "most", "shown"),
    [
        ([3, 3], 5, 9, [0, 1, 2, 3, 4]),
        ([0, 9], 10, 4, [0, 1, 8, 9]),
        ([0, 9], 10, 3, [0, 9]),
        ([5], 10, 4, [4, 5, 6]),
        ([1, 4, 7], 10, 2, [1, 4]),
        ([0], 1, 5, [0]),
    ],
)
def test_columns_shown_are_the_best_tokens_and_what_is_around_them(
    best: list[int], tokens: int, most: int, shown: list[int]
) -> None:
    similarity = np.zeros((len(best), tokens), np.float32)
    similarity[np.arange(len(best)), best] = 1
    alignment = Alignment(["q"] * len(best), ["p"] * tokens, similarity, 1.0)
    assert columns_shown(alignment, most).tolist() == shown
