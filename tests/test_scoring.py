"""Scores equal naive double loops and FlagEmbedding's (golden values: data/oracle)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_inputs import EXACT, M3, MODELS

import actors.search.kernels
from actors.config import OUTPUTS, ModelConfig
from actors.encoder import Encoder, load_encoder
from actors.errors import EncodeError, ModelError
from actors.scoring import (
    colbert_matrix,
    colbert_pairs,
    dense_matrix,
    dense_pairs,
    pair_scores,
    sparse_matrix,
    sparse_pairs,
)
from actors.search.fusion import weighted_mean
from actors.token_names import TokenNames
from actors.vectors import SparseVectors, TokenVectors, fixed_size_lists

ORACLE = MODELS.parent
TEXTS: list[str] = json.loads((ORACLE / "expected.json").read_text(encoding="utf-8"))["TEXTS"]
EXPECTED = json.loads((ORACLE / "scoring_expected.json").read_text(encoding="utf-8"))
QUERIES, PASSAGES = ([pair[side] for pair in EXPECTED["PAIRS"]] for side in (0, 1))
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
MATRICES = {"dense": dense_matrix, "sparse": sparse_matrix, "colbert": colbert_matrix}
OF_PAIRS = {"dense": dense_pairs, "sparse": sparse_pairs, "colbert": colbert_pairs}


def m3(max_length: int) -> Encoder:
    lengths = {"max_length": max_length, "query_max_length": 32}
    return load_encoder(ModelConfig(name=str(M3), outputs=OUTPUTS, **lengths, **EXACT))


@pytest.fixture(scope="module")
def texts() -> pa.Table:
    return m3(64).encode_passages(TEXTS)


@pytest.fixture(scope="module")
def pairs() -> tuple[pa.Table, pa.Table]:
    encoder = m3(64)
    return encoder.encode_queries(QUERIES), encoder.encode_passages(PASSAGES)


# --- FlagEmbedding's numbers -------------------------------------------------------------------


def test_lexical_and_colbert_scores_equal_flagembedding(texts):
    sparse, colbert = texts["sparse"], texts["colbert"][:3]
    for found, expected in (
        (sparse_matrix(sparse[:1], sparse[1:2]), [[EXPECTED["m3.lexical_1x1"]]]),
        (sparse_matrix(sparse[:3], sparse[3:]), EXPECTED["m3.lexical_matrix"]),
        (colbert_matrix(colbert, colbert), EXPECTED["m3.colbert_score"]),
    ):
        np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize(
    ("key", "max_length", "pairs", "weights"),
    [
        ("default", 64, 6, (1.0, 1.0, 1.0)),
        ("w", 24, 6, (0.4, 0.2, 0.4)),
        ("one_pair", 64, 1, (1.0, 1.0, 1.0)),
    ],
)
def test_pair_scores_equal_compute_score(key, max_length, pairs, weights):
    encoder = m3(max_length)
    queries, passages = encoder.encode_queries(QUERIES), encoder.encode_passages(PASSAGES)
    scores = pair_scores(queries[:pairs], passages[:pairs], weights)
    expected = EXPECTED[f"m3.compute_score.{key}"]
    assert list(scores) == list(expected)
    for name, values in expected.items():
        assert scores[name].dtype == np.float32
        np.testing.assert_allclose(scores[name], np.atleast_1d(values), **CLOSE, err_msg=name)


# --- naive loops -------------------------------------------------------------------------------

NUMBERS = st.floats(-2, 2, width=16)
DIM = 3
VECTOR = st.lists(NUMBERS, min_size=DIM, max_size=DIM)
SMALL_IDS = st.integers(0, 12)
SPARSE = pa.struct({"indices": pa.list_(pa.int32()), "values": pa.list_(pa.float32())})
ROWS = {
    "dense": (st.lists(VECTOR, max_size=6),) * 2,
    "sparse": tuple(
        st.lists(st.dictionaries(ids, NUMBERS, max_size=6), max_size=6)
        for ids in (SMALL_IDS, SMALL_IDS | st.just(2**31 - 2))
    ),
    "colbert": (st.lists(st.lists(VECTOR, max_size=5), max_size=6),) * 2,
}
"""Of queries and of passages."""
LAYOUTS = st.sampled_from(["whole", "sliced", "chunked", "sliced and chunked", "large"])


def arrow(rows: list[Any], output: str, dtype: type, layout: str) -> pa.Array | pa.ChunkedArray:
    """A column as it may come: whole, a slice of a longer one, in chunks (some of them slices)."""
    kind = pa.list_(pa.from_numpy_dtype(dtype), DIM)
    if output == "colbert":
        kind = (pa.large_list if layout == "large" else pa.list_)(kind)
    if output == "sparse":
        kind, rows = SPARSE, [as_sparse(row) for row in rows]

    def column(rows: list[Any]) -> pa.Array:
        around = rows[::-1] if "sliced" in layout else []
        array = pa.array([*around, *rows, *around], kind)
        return array.slice(len(around), len(rows))

    if "chunked" not in layout:
        return column(rows)
    cut = len(rows) // 2
    return pa.chunked_array([column(rows[:cut]), column([]), column(rows[cut:])], type=kind)


def as_sparse(row: dict[int, float]) -> dict[str, list[Any]]:
    return {"indices": sorted(row), "values": [row[i] for i in sorted(row)]}


def inner(query: list[float], passage: list[float]) -> float:
    return sum(a * b for a, b in zip(query, passage, strict=True))


def naive(output: str, query: Any, passage: Any) -> float:
    if output == "dense":
        return inner(query, passage)
    if output == "sparse":
        return sum(query[i] * passage[i] for i in query.keys() & passage.keys())
    if not query or not passage:
        return 0.0
    return sum(max(inner(q, p) for p in passage) for q in query) / len(query)


@pytest.mark.parametrize("output", OUTPUTS)
@settings(deadline=None)
@given(
    data=st.data(),
    dtype=st.sampled_from([np.float16, np.float32]),
    layouts=st.tuples(LAYOUTS, LAYOUTS),
)
def test_scores_of_any_columns_equal_a_loop(output, data, dtype, layouts):
    """Matrix and pairs; the pairs are of the first rows, as many as both columns have."""
    queries, passages = (data.draw(rows) for rows in ROWS[output])
    expected = np.array([[naive(output, q, p) for p in passages] for q in queries], np.float64)
    expected = expected.reshape(len(queries), len(passages))
    columns = [
        arrow(rows, output, dtype, layout)
        for rows, layout in zip((queries, passages), layouts, strict=True)
    ]
    n = min(expected.shape)
    of_pairs = OF_PAIRS[output](columns[0][:n], columns[1][:n])
    for found, theirs in (
        (MATRICES[output](*columns), expected),
        (of_pairs, expected.diagonal()),
    ):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, theirs, **CLOSE)


def test_scores_in_several_blocks_equal_those_in_one(monkeypatch, texts):
    def scores() -> list[np.ndarray]:
        return [matrix(texts[name], texts[name]) for name, matrix in MATRICES.items()]

    whole = scores()
    for name, size in {"_ROWS": 3, "_PASSAGE_TOKENS": 20, "_QUERY_TOKENS": 7}.items():
        monkeypatch.setattr(actors.search.kernels, name, size)
    for one, several in zip(whole, scores(), strict=True):
        np.testing.assert_allclose(several, one, rtol=1e-6, atol=1e-6)


def test_half_precision_vectors_scored_in_float32():
    """A sum that float16 would stop counting at 2048."""
    ones = np.ones((1, 4096), dtype=np.float16)
    assert dense_matrix(ones, ones).tolist() == [[4096.0]]
    assert dense_pairs(ones, ones).tolist() == [4096.0]
    assert colbert_matrix([ones], [ones]).tolist() == [[4096.0]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_colbert_stored_as_bytes_scores_as_its_numbers(dtype):
    vectors = np.arange(18, dtype=dtype).reshape(6, DIM)
    offsets = pa.array([0, 1, 4, 6], pa.int32())
    numbers = pa.ListArray.from_arrays(offsets, fixed_size_lists(vectors))
    raw = pa.array([vector.tobytes() for vector in vectors], pa.binary(vectors[0].nbytes))
    stored = TokenVectors.of(pa.ListArray.from_arrays(offsets, raw)[1:], dtype)
    expected = colbert_matrix(numbers, numbers)[:, 1:]
    np.testing.assert_array_equal(colbert_matrix(numbers, stored), expected)


def test_sparse_vectors_of_maps_equal_those_of_arrow():
    rows: list[dict[int, float]] = [{7: 0.5, 2: 1.5}, {}, {2: 2.0}]
    column = pa.array([as_sparse(row) for row in rows], SPARSE)
    np.testing.assert_array_equal(sparse_matrix(rows, column), sparse_matrix(column, rows))
    assert sparse_matrix(rows, rows).tolist() == [[2.5, 0, 3], [0, 0, 0], [3, 0, 4]]


def test_weighted_mean_counts_the_weights_of_its_outputs_and_is_nan_without_as_upstream():
    scores = {"colbert": np.array([[1.0, 2.0]]), "dense": np.array([[3.0, 6.0]])}
    assert weighted_mean(scores, (3.0, 100.0, 1.0)).tolist() == [[2.5, 5.0]]
    assert np.isnan(weighted_mean({"dense": np.ones(2, np.float32)}, (0.0, 1.0, 1.0))).all()
    with pytest.raises(ValueError, match="weights of dense, sparse, colbert"):
        weighted_mean({"dense": np.ones(2)}, (1.0, 1.0))


# --- token names -------------------------------------------------------------------------------


def test_token_texts_equal_convert_id_to_token_but_where_ids_decode_alike(texts):
    names, sparse, differ = TokenNames(M3), texts["sparse"][:2], []
    for row, pieces, golden in zip(
        names.texts(sparse), names.pieces(sparse), EXPECTED["m3.id_to_token"], strict=True
    ):
        assert row.keys() == golden.keys()
        assert list(row.values()) == sorted(row.values(), reverse=True)
        for token, weight in row.items():
            alike = [w for piece, w in pieces.items() if piece.replace("▁", "") == token]
            assert weight == max(alike)
            if weight != pytest.approx(golden[token], rel=1e-5):
                differ.append(token)
                assert golden[token] == pytest.approx(min(alike), rel=1e-5)
    # "▁a" (an article) weighs more than "a" within a word, which comes later in the text.
    assert differ == ["a"]


def test_token_names_keep_every_weight_also_of_the_mask_token_that_counts_as_a_word(texts):
    names, sparse = TokenNames(M3), texts["sparse"]
    pieces = names.pieces(sparse)
    assert [len(row) for row in pieces] == [len(row["indices"]) for row in sparse.to_pylist()]
    assert pieces[TEXTS.index("")] == {}
    row = next(i for i, text in enumerate(TEXTS) if "<mask>" in text)
    assert "<mask>" in names.texts(sparse[row : row + 1])[0]


def test_token_names_of_another_model_or_no_tokenizer_refused(tmp_path):
    with pytest.raises(ModelError, match=r"token id 250000.*Use the model that"):
        TokenNames(M3).texts([{250_000: 1.0}])
    with pytest.raises(ModelError, match=r"tokenizer\.json: expected a tokenizer"):
        TokenNames(tmp_path)


# --- what cannot be scored ---------------------------------------------------------------------


@pytest.mark.parametrize("output", OUTPUTS)
def test_scores_of_nulls_of_another_type_or_of_unequal_numbers_refused(texts, pairs, output):
    column, strings = texts[output].combine_chunks(), pa.array(["a"])
    nulls = pa.concat_arrays([column, pa.nulls(2, column.type)])
    with pytest.raises(EncodeError, match="vectors in all of 12 rows, found 2 nulls"):
        MATRICES[output](column, nulls)
    with pytest.raises(TypeError, match=r"expected .*got string"):
        MATRICES[output](strings, strings)
    with pytest.raises(ValueError, match="as many queries as passages, got 6 and 5"):
        OF_PAIRS[output](pairs[0][output], pairs[1][output][:5])


def test_scores_of_what_does_not_fit_refused(pairs):
    queries, passages = pairs
    with pytest.raises(ModelError, match=r"passages: expected columns .* found no sparse, colbert"):
        pair_scores(queries, passages.select(["dense"]))
    with pytest.raises(TypeError, match="expected an Arrow column, got int"):
        dense_matrix(3, 3)
    three, four = np.ones((2, 3)), np.ones((2, 4))
    scores: list[tuple[Callable[..., Any], Any, Any]] = [
        *((score, three, four) for score in (dense_matrix, dense_pairs)),
        *((score, [three], [four]) for score in (colbert_matrix, colbert_pairs)),
    ]
    for score, of_queries, of_passages in scores:
        with pytest.raises(ModelError, match="of the same dimension, found 3 and 4"):
            score(of_queries, of_passages)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([([2, 1], [1.0, 1.0])], "ascend"),
        ([([1, 1], [1.0, 1.0])], "ascend"),
        ([([1], [1.0, 1.0]), ([1, 2], [1.0])], "as many values as indices"),
    ],
    ids=str,
)
def test_sparse_vectors_that_are_none_refused(rows, said):
    column = pa.array([{"indices": ids, "values": values} for ids, values in rows], SPARSE)
    with pytest.raises(ValueError, match=said):
        SparseVectors.of(column)
