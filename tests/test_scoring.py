"""Scores equal naive double loops and FlagEmbedding's (golden values: data/oracle)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import actors.search.kernels
from actors.config import ModelConfig
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

ORACLE = Path(__file__).parent / "data" / "oracle"
M3 = ORACLE / "models" / "bge-m3"
TEXTS: list[str] = json.loads((ORACLE / "expected.json").read_text(encoding="utf-8"))["TEXTS"]
EXPECTED = json.loads((ORACLE / "scoring_expected.json").read_text(encoding="utf-8"))
QUERIES, PASSAGES = ([pair[side] for pair in EXPECTED["PAIRS"]] for side in (0, 1))
S = {"rtol": 1e-5, "atol": 1e-5}
"""Tolerance of a score."""


def m3(max_length: int) -> Encoder:
    return load_encoder(
        ModelConfig(
            name=str(M3),
            outputs=("dense", "sparse", "colbert"),
            max_length=max_length,
            query_max_length=32,
            vector_dtype="float32",
            dtype="float32",
            device="cpu",
        )
    )


@pytest.fixture(scope="module")
def texts() -> pa.Table:
    return m3(64).encode_passages(TEXTS)


@pytest.fixture(scope="module")
def pairs() -> tuple[pa.Table, pa.Table]:
    encoder = m3(64)
    return encoder.encode_queries(QUERIES), encoder.encode_passages(PASSAGES)


# --- FlagEmbedding's numbers -------------------------------------------------------------------


def test_lexical_scores_equal_flagembedding(texts: pa.Table) -> None:
    sparse = texts["sparse"]
    one = sparse_matrix(sparse[:1], sparse[1:2])
    np.testing.assert_allclose(one, [[EXPECTED["m3.lexical_1x1"]]], **S)
    many = sparse_matrix(sparse[:3], sparse[3:])
    np.testing.assert_allclose(many, EXPECTED["m3.lexical_matrix"], **S)


def test_colbert_scores_equal_flagembedding(texts: pa.Table) -> None:
    colbert = texts["colbert"][:3]
    np.testing.assert_allclose(colbert_matrix(colbert, colbert), EXPECTED["m3.colbert_score"], **S)


@pytest.mark.parametrize(
    ("key", "max_length", "weights"),
    [("default", 64, (1.0, 1.0, 1.0)), ("w", 24, (0.4, 0.2, 0.4))],
)
def test_pair_scores_equal_compute_score(
    key: str, max_length: int, weights: tuple[float, float, float]
) -> None:
    encoder = m3(max_length)
    queries, passages = encoder.encode_queries(QUERIES), encoder.encode_passages(PASSAGES)
    scores = pair_scores(queries, passages, weights)
    expected = EXPECTED[f"m3.compute_score.{key}"]
    assert list(scores) == list(expected)
    for name, values in expected.items():
        assert scores[name].dtype == np.float32
        np.testing.assert_allclose(scores[name], values, **S, err_msg=name)


def test_pair_scores_of_one_pair_equal_compute_score(pairs: tuple[pa.Table, pa.Table]) -> None:
    queries, passages = pairs
    scores = pair_scores(queries[:1], passages[:1])
    for name, value in EXPECTED["m3.compute_score.one_pair"].items():
        np.testing.assert_allclose(scores[name], [value], **S, err_msg=name)


def padded_max_sim(query: np.ndarray, passage: np.ndarray) -> float:
    """compute_score's, of a passage shorter than the longest of its batch."""
    padded = np.concatenate([passage, np.zeros((1, passage.shape[1]), passage.dtype)])
    return float((query @ padded.T).max(axis=1).mean())


def rows_of(tokens: TokenVectors) -> list[np.ndarray]:
    return np.split(tokens.vectors_TD, tokens.offsets[1:-1])


def test_colbert_pairs_of_the_golden_pairs_not_touched_by_upstreams_padding(
    pairs: tuple[pa.Table, pa.Table],
) -> None:
    """Why the comparison above holds: no query token's best similarity is below 0.

    Four of these six passages are padded with zero vectors upstream (all but the longest of each
    batch); a maximum over them and a similarity of 0 is the same maximum.
    """
    queries, passages = (rows_of(TokenVectors.of(table["colbert"])) for table in pairs)
    for query, passage in zip(queries, passages, strict=True):
        assert (query @ passage.T).max(axis=1).min() > 0.2


def test_colbert_pairs_of_opposed_vectors_below_zero_where_upstreams_are_clipped() -> None:
    query, passage = np.array([[1.0, 0.0]]), np.array([[-0.6, 0.8], [-0.8, 0.6]])
    assert colbert_pairs([query], [passage]) == pytest.approx([-0.6])
    assert padded_max_sim(query, passage) == 0.0


# --- naive loops -------------------------------------------------------------------------------

NUMBERS = st.floats(-2, 2, width=16)
DIM = 3
SPARSE_ROWS = st.lists(
    st.dictionaries(st.integers(0, 12) | st.just(2**31 - 2), NUMBERS, max_size=6), max_size=6
)
SMALL_IDS = st.lists(st.dictionaries(st.integers(0, 12), NUMBERS, max_size=6), max_size=6)
VECTOR = st.lists(NUMBERS, min_size=DIM, max_size=DIM)
DENSE_ROWS = st.lists(VECTOR, max_size=6)
TOKEN_ROWS = st.lists(st.lists(VECTOR, max_size=5), max_size=6)
DTYPES = st.sampled_from([np.float16, np.float32])
LAYOUTS = st.sampled_from(["whole", "sliced", "chunked", "sliced and chunked", "large"])


def dense_type(dtype: type) -> pa.DataType:
    return pa.list_(pa.from_numpy_dtype(dtype), DIM)


def sparse_type() -> pa.DataType:
    return pa.struct({"indices": pa.list_(pa.int32()), "values": pa.list_(pa.float32())})


def arrow(rows: list[Any], kind: pa.DataType, layout: str) -> pa.Array | pa.ChunkedArray:
    """A column as it may come: whole, a slice of a longer one, in chunks (some of them slices)."""

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


def lexical(query: dict[int, float], passage: dict[int, float]) -> float:
    return sum(query[i] * passage[i] for i in query.keys() & passage.keys())


def inner(query: list[float], passage: list[float]) -> float:
    return sum(a * b for a, b in zip(query, passage, strict=True))


def max_sim(query: list[list[float]], passage: list[list[float]]) -> float:
    if not query or not passage:
        return 0.0
    return sum(max(inner(q, p) for p in passage) for q in query) / len(query)


def naive(score: Callable[..., float], queries: list[Any], passages: list[Any]) -> np.ndarray:
    scores = [[score(query, passage) for passage in passages] for query in queries]
    return np.array(scores, dtype=np.float64).reshape(len(queries), len(passages))


def assert_scores(
    matrix: Callable[..., np.ndarray],
    of_pairs: Callable[..., np.ndarray],
    columns: tuple[Any, Any],
    expected: np.ndarray,
) -> None:
    """Matrix and pairs; the pairs are of the first rows, as many as both columns have."""
    scores = matrix(*columns)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
    n = min(expected.shape)
    diagonal = of_pairs(columns[0][:n], columns[1][:n])
    assert diagonal.dtype == np.float32
    np.testing.assert_allclose(diagonal, expected.diagonal(), rtol=1e-5, atol=1e-5)


@settings(deadline=None)
@given(queries=DENSE_ROWS, passages=DENSE_ROWS, dtype=DTYPES, layouts=st.tuples(LAYOUTS, LAYOUTS))
def test_dense_scores_of_any_columns_equal_a_loop(
    queries: list[Any], passages: list[Any], dtype: type, layouts: tuple[str, str]
) -> None:
    columns = (
        arrow(queries, dense_type(dtype), layouts[0]),
        arrow(passages, dense_type(dtype), layouts[1]),
    )
    assert_scores(dense_matrix, dense_pairs, columns, naive(inner, queries, passages))


@settings(deadline=None)
@given(queries=SMALL_IDS, passages=SPARSE_ROWS, layouts=st.tuples(LAYOUTS, LAYOUTS))
def test_sparse_scores_of_any_columns_equal_a_loop(
    queries: list[Any], passages: list[Any], layouts: tuple[str, str]
) -> None:
    columns = (
        arrow([as_sparse(row) for row in queries], sparse_type(), layouts[0]),
        arrow([as_sparse(row) for row in passages], sparse_type(), layouts[1]),
    )
    assert_scores(sparse_matrix, sparse_pairs, columns, naive(lexical, queries, passages))


@settings(deadline=None)
@given(queries=TOKEN_ROWS, passages=TOKEN_ROWS, dtype=DTYPES, layouts=st.tuples(LAYOUTS, LAYOUTS))
def test_colbert_scores_of_any_columns_equal_a_loop(
    queries: list[Any], passages: list[Any], dtype: type, layouts: tuple[str, str]
) -> None:
    def kind(layout: str) -> pa.DataType:
        return (pa.large_list if layout == "large" else pa.list_)(dense_type(dtype))

    columns = (
        arrow(queries, kind(layouts[0]), layouts[0]),
        arrow(passages, kind(layouts[1]), layouts[1]),
    )
    assert_scores(colbert_matrix, colbert_pairs, columns, naive(max_sim, queries, passages))


def test_scores_in_several_blocks_equal_those_in_one(
    monkeypatch: pytest.MonkeyPatch, texts: pa.Table
) -> None:
    def scores() -> list[np.ndarray]:
        columns = [texts[name] for name in ("dense", "sparse", "colbert")]
        functions = (dense_matrix, sparse_matrix, colbert_matrix)
        return [f(column, column) for f, column in zip(functions, columns, strict=True)]

    whole = scores()
    for name, size in {
        "_ROWS": 3,
        "_PASSAGE_TOKENS": 20,
        "_QUERY_TOKENS": 7,
    }.items():
        monkeypatch.setattr(actors.search.kernels, name, size)
    for one, several in zip(whole, scores(), strict=True):
        np.testing.assert_allclose(several, one, rtol=1e-6, atol=1e-6)


def test_half_precision_vectors_scored_in_float32() -> None:
    """A sum that float16 would stop counting at 2048."""
    ones = np.ones((1, 4096), dtype=np.float16)
    assert dense_matrix(ones, ones).tolist() == [[4096.0]]
    assert dense_pairs(ones, ones).tolist() == [4096.0]
    assert colbert_matrix([ones], [ones]).tolist() == [[4096.0]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_colbert_stored_as_bytes_scores_as_its_numbers(dtype: type) -> None:
    vectors = np.arange(18, dtype=dtype).reshape(6, DIM)
    offsets = pa.array([0, 1, 4, 6], pa.int32())
    numbers = pa.ListArray.from_arrays(offsets, fixed_size_lists(vectors))
    raw = pa.array([vector.tobytes() for vector in vectors], pa.binary(vectors[0].nbytes))
    stored = TokenVectors.of(pa.ListArray.from_arrays(offsets, raw)[1:], dtype)
    np.testing.assert_array_equal(
        colbert_matrix(numbers, stored), colbert_matrix(numbers, numbers)[:, 1:]
    )


def test_sparse_vectors_of_maps_equal_those_of_arrow() -> None:
    rows: list[dict[int, float]] = [{7: 0.5, 2: 1.5}, {}, {2: 2.0}]
    column = pa.array([as_sparse(row) for row in rows], sparse_type())
    np.testing.assert_array_equal(sparse_matrix(rows, column), sparse_matrix(column, rows))
    assert sparse_matrix(rows, rows).tolist() == [[2.5, 0, 3], [0, 0, 0], [3, 0, 4]]


# --- weighted mean -----------------------------------------------------------------------------


def test_weighted_mean_of_some_outputs_counts_their_weights_only() -> None:
    scores = {"colbert": np.array([[1.0, 2.0]]), "dense": np.array([[3.0, 6.0]])}
    mean = weighted_mean(scores, (3.0, 100.0, 1.0))  # type: ignore[arg-type]
    assert mean.tolist() == [[2.5, 5.0]]


def test_weighted_mean_without_weight_is_nan_as_upstream() -> None:
    assert np.isnan(weighted_mean({"dense": np.ones(2, np.float32)}, (0.0, 1.0, 1.0))).all()


def test_weighted_mean_of_two_weights_refused() -> None:
    with pytest.raises(ValueError, match="weights of dense, sparse, colbert"):
        weighted_mean({"dense": np.ones(2)}, (1.0, 1.0))  # type: ignore[arg-type]


# --- token names -------------------------------------------------------------------------------


def test_token_texts_equal_convert_id_to_token_but_where_ids_decode_alike(
    texts: pa.Table,
) -> None:
    names = TokenNames(M3)
    sparse = texts["sparse"][:2]
    pieces = names.pieces(sparse)
    differ = []
    for row, pieces_row, golden in zip(
        names.texts(sparse), pieces, EXPECTED["m3.id_to_token"], strict=True
    ):
        assert row.keys() == golden.keys()
        assert list(row.values()) == sorted(row.values(), reverse=True)
        for token, weight in row.items():
            alike = [w for piece, w in pieces_row.items() if piece.replace("▁", "") == token]
            assert weight == max(alike)
            if weight != pytest.approx(golden[token], rel=1e-5):
                differ.append(token)
                assert golden[token] == pytest.approx(min(alike), rel=1e-5)
    # "▁a" (an article) weighs more than "a" within a word, which comes later in the text.
    assert differ == ["a"]


def test_token_texts_name_the_mask_token_that_counts_as_a_word(texts: pa.Table) -> None:
    row = next(i for i, text in enumerate(TEXTS) if "<mask>" in text)
    assert "<mask>" in TokenNames(M3).texts(texts["sparse"][row : row + 1])[0]


def test_token_pieces_keep_every_weight(texts: pa.Table) -> None:
    sparse = texts["sparse"]
    lengths = [len(row["indices"]) for row in sparse.to_pylist()]
    pieces = TokenNames(M3).pieces(sparse)
    assert [len(row) for row in pieces] == lengths
    assert pieces[TEXTS.index("")] == {}


def test_token_names_of_another_models_ids_refused() -> None:
    with pytest.raises(ModelError, match=r"token id 250000.*another model's"):
        TokenNames(M3).texts([{250_000: 1.0}])


def test_token_names_without_tokenizer_file_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json: expected a tokenizer"):
        TokenNames(tmp_path)


# --- what cannot be scored ---------------------------------------------------------------------


def test_pair_scores_without_an_output_refused(pairs: tuple[pa.Table, pa.Table]) -> None:
    queries, passages = pairs
    with pytest.raises(ModelError, match=r"passages: expected columns .* found no sparse, colbert"):
        pair_scores(queries, passages.select(["dense"]))


@pytest.mark.parametrize("score", [dense_matrix, dense_pairs])
def test_dense_scores_of_other_dimensions_refused(score: Callable[..., np.ndarray]) -> None:
    with pytest.raises(ModelError, match="found 3 for queries and 4 for passages"):
        score(np.ones((2, 3)), np.ones((2, 4)))


@pytest.mark.parametrize("score", [colbert_matrix, colbert_pairs])
def test_colbert_scores_of_other_dimensions_refused(score: Callable[..., np.ndarray]) -> None:
    with pytest.raises(ModelError, match="found 3 for queries and 4 for passages"):
        score([np.ones((2, 3))], [np.ones((5, 4))])


def test_pair_scores_of_unequal_numbers_refused(pairs: tuple[pa.Table, pa.Table]) -> None:
    queries, passages = pairs
    for of_pairs, name in (
        (dense_pairs, "dense"),
        (sparse_pairs, "sparse"),
        (colbert_pairs, "colbert"),
    ):
        with pytest.raises(ValueError, match="as many queries as passages, got 6 and 5"):
            of_pairs(queries[name], passages[name][:5])


def test_scores_of_null_rows_refused(texts: pa.Table) -> None:
    for matrix, name in (
        (dense_matrix, "dense"),
        (sparse_matrix, "sparse"),
        (colbert_matrix, "colbert"),
    ):
        column = texts[name].combine_chunks()
        nulls = pa.concat_arrays([column, pa.nulls(2, column.type)])
        with pytest.raises(EncodeError, match="vectors in all of 12 rows, found 2 nulls"):
            matrix(column, nulls)


def test_scores_of_another_type_refused() -> None:
    strings = pa.array(["a"])
    for matrix in (dense_matrix, sparse_matrix, colbert_matrix):
        with pytest.raises(TypeError, match=r"expected .*got string"):
            matrix(strings, strings)
    with pytest.raises(TypeError, match="expected an Arrow column, got int"):
        dense_matrix(3, 3)


@pytest.mark.parametrize("indices", [[2, 1], [1, 1]])
def test_sparse_vectors_whose_ids_do_not_ascend_refused(indices: list[int]) -> None:
    column = pa.array([{"indices": indices, "values": [1.0, 1.0]}], sparse_type())
    with pytest.raises(ValueError, match="ascend"):
        SparseVectors.of(column)


def test_sparse_vectors_of_unequal_lengths_refused() -> None:
    column = pa.array(
        [{"indices": [1], "values": [1.0, 1.0]}, {"indices": [1, 2], "values": [1.0]}],
        sparse_type(),
    )
    with pytest.raises(ValueError, match="as many values as indices"):
        SparseVectors.of(column)
