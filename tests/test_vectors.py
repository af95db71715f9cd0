"""Output columns: a naive loop over passages is the reference."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.vectors import fixed_size_lists, sparse_vectors

WEIGHT = st.one_of(st.just(0.0), st.floats(-5, 5, width=32))
PASSAGES = st.lists(
    st.lists(st.tuples(st.integers(0, 12), WEIGHT), min_size=1, max_size=10), max_size=8
)


def naive_sparse(
    passages: list[list[tuple[int, float]]], non_lexical: set[int]
) -> list[dict[int, float]]:
    vectors = []
    for passage in passages:
        vector: dict[int, float] = {}
        for token_id, weight in passage:
            if weight > 0 and token_id not in non_lexical:
                vector[token_id] = max(weight, vector.get(token_id, 0.0))
        vectors.append(dict(sorted(vector.items())))
    return vectors


@settings(deadline=None)
@given(passages=PASSAGES, non_lexical=st.sets(st.integers(0, 12), max_size=4))
def test_sparse_vectors_equal_a_loop_over_dicts(
    passages: list[list[tuple[int, float]]], non_lexical: set[int]
) -> None:
    flat = [token for passage in passages for token in passage]
    array = sparse_vectors(
        np.array([weight for _, weight in flat], dtype=np.float32),
        np.array([token_id for token_id, _ in flat], dtype=np.int32),
        np.cumsum([0, *map(len, passages)], dtype=np.int32),
        np.array(sorted(non_lexical), dtype=np.int32),
    )
    array.validate(full=True)
    assert array.type == pa.struct(
        [("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))]
    )
    expected = naive_sparse(passages, non_lexical)
    assert array.to_pylist() == [
        {"indices": list(vector), "values": list(vector.values())} for vector in expected
    ]


def test_sparse_vectors_of_largest_token_id_keep_passages_apart() -> None:
    largest = 2**31 - 1
    array = sparse_vectors(
        np.array([1.0, 2.0, 3.0], dtype=np.float32),
        np.array([largest, 0, largest], dtype=np.int32),
        np.array([0, 1, 3], dtype=np.int32),
        np.zeros(0, dtype=np.int32),
    )
    assert array.to_pylist() == [
        {"indices": [largest], "values": [1.0]},
        {"indices": [0, largest], "values": [2.0, 3.0]},
    ]


def test_fixed_size_lists_of_no_rows_keep_their_width() -> None:
    array = fixed_size_lists(np.zeros((0, 3), dtype=np.float32))
    assert len(array) == 0
    assert array.type == pa.list_(pa.float32(), 3)
