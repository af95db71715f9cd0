"""A reranker as a pipeline holds it: a column of tokenised pairs in, a column of scores out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.config import RerankerConfig
from actors.errors import ModelError
from actors.fingerprint import score_parts
from actors.models.reranker_files import resolve_reranker
from actors.pair_scorer import PairScorer, load_pair_scorer
from actors.reranker import Reranker, load_reranker
from actors.tokens.pair_tokens import PAIR_TOKENS_TYPE, PairTokens
from actors.tokens.pairs import load_pair_tokenizer

MODELS = Path(__file__).parent / "data/oracle/models"
words = st.text("abc déß你好 \n.", max_size=30)


def config_of(name: str = "bge-reranker-v2-m3", **options: Any) -> RerankerConfig:
    options = {"max_length": 96, "dtype": "float32", "device": "cpu"} | options
    return RerankerConfig(name=str(MODELS / name), **options)


@pytest.fixture(scope="module")
def reranker() -> Reranker:
    return load_reranker(config_of(max_batch_tokens=32))


@settings(max_examples=20, deadline=None)
@given(pairs=st.lists(st.tuples(words, words), max_size=40), skipped=st.integers(0, 40))
def test_stream_of_a_sliced_column_equals_the_rerankers_scores(
    reranker: Reranker, pairs: list[tuple[str, str]], skipped: int
) -> None:
    column = reranker.tokenize(pairs).to_arrow()
    assert column.type == PAIR_TOKENS_TYPE
    kept = pairs[skipped:]
    batches = list(PairScorer(reranker, "").stream(pa.chunked_array([column]).slice(skipped)))
    bounds = [0, *(batch.stop for batch in batches)]
    assert [batch.start for batch in batches] == bounds[:-1]
    assert bounds[-1] == len(kept)
    found = [score for batch in batches for score in batch.columns["score"].to_pylist()]
    np.testing.assert_allclose(found, reranker.score(kept), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bge-reranker-v2-m3", "bge-reranker-v2-gemma"])
def test_pairs_from_arrow_are_those_that_went_there(kind: str) -> None:
    config = config_of(kind)
    tokenizer = load_pair_tokenizer(resolve_reranker(config), config)
    tokens = tokenizer.tokenize([("what is ray", "an engine"), ("", ""), ("a", "b c")])
    again = PairTokens.from_arrow(tokens.to_arrow(), tokenizer.shape)
    assert again.tail == tokens.tail
    for name in ("values", "offsets", "types", "passage_starts", "truncated"):
        np.testing.assert_array_equal(getattr(again, name), getattr(tokens, name))


def test_scores_of_several_layers_are_a_list_a_pair() -> None:
    config = config_of("bge-reranker-v2-minicpm-layerwise", cutoff_layers=(2, 4))
    scorer = load_pair_scorer(config)
    assert scorer.info.dim == 2
    assert scorer.empty()["score"].type == pa.list_(pa.float32(), 2)


def test_empty_is_a_column_of_float32() -> None:
    scorer = load_pair_scorer(config_of())
    assert scorer.empty().schema == pa.schema([("score", pa.float32())])
    assert (scorer.info.dim, scorer.info.pooling) == (1, "none")


def parts_of(**options: Any) -> dict[str, Any]:
    config = config_of(**options)
    return score_parts(config, resolve_reranker(config))


@pytest.mark.parametrize(
    "options", [{"dtype": "bfloat16"}, {"max_batch_tokens": 8}, {"query_max_length": 72}], ids=str
)
def test_score_parts_of_the_same_scores_are_the_same(options: dict[str, Any]) -> None:
    assert parts_of(**options) == parts_of()


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 95},
        {"query_max_length": 10},
        {"name": "bge-reranker-v2-gemma"},
        {"compress_ratio": 2},
    ],
    ids=str,
)
def test_score_parts_of_other_scores_differ(options: dict[str, Any]) -> None:
    assert parts_of(**options) != parts_of()


def test_score_parts_of_other_layers_differ() -> None:
    name = "bge-reranker-v2-minicpm-layerwise"
    assert parts_of(name=name, cutoff_layers=(2,)) != parts_of(name=name)


def test_score_parts_of_another_prompt_differ() -> None:
    own = parts_of(name="bge-reranker-v2-gemma")
    assert parts_of(name="bge-reranker-v2-gemma", prompt="Is it?") != own
    assert parts_of(name="bge-reranker-v2-gemma", prompt=own["prompt"]) == own


def test_load_pair_scorer_of_an_embedder_is_model_error() -> None:
    with pytest.raises(ModelError, match="expected a reranker"):
        load_pair_scorer(RerankerConfig(name="builtin:tiny-m3"))
