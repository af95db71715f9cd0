"""The cache: what it gives back, and that it stays within its bytes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actors.text_vectors import TextVectors
from pipelines.endpoint.service import VectorCache


def vectors(value: float, dim: int = 8) -> TextVectors:
    return TextVectors(n_tokens=3, truncated=False, dense=np.full(dim, value, np.float32))


def test_cache_gives_a_copy_of_what_was_put() -> None:
    cache: VectorCache[str] = VectorCache(10_000)
    put = vectors(1)
    cache.put("a", put, 1)
    assert put.dense is not None
    put.dense[:] = 2
    found = cache.get("a", ("dense",))
    assert found is not None
    assert found.dense is not None
    assert found.dense.tolist() == [1] * 8
    assert cache.get("b", ("dense",)) is None


def test_cache_does_not_answer_with_less_than_is_asked_for() -> None:
    cache: VectorCache[str] = VectorCache(10_000)
    cache.put("a", vectors(1), 1)
    assert cache.get("a", ("dense", "sparse")) is None


def test_cache_forgets_what_was_not_asked_for_the_longest() -> None:
    cache: VectorCache[str] = VectorCache(2_000)  # three entries of some 630 bytes
    for key in "abc":
        cache.put(key, vectors(1), 1)
    cache.get("a", ("dense",))
    cache.put("d", vectors(1), 1)
    assert [key for key in "abcd" if cache.get(key, ("dense",))] == ["a", "c", "d"]


def test_cache_of_no_bytes_keeps_nothing() -> None:
    cache: VectorCache[str] = VectorCache(0)
    cache.put("a", vectors(1), 1)
    assert len(cache) == cache.nbytes == 0


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 500), st.integers(0, 50))))
def test_cache_never_holds_more_than_its_bytes(puts: list[tuple[int, int, int]]) -> None:
    cache: VectorCache[int] = VectorCache(5_000)
    for key, dim, key_bytes in puts:
        cache.put(key, vectors(1, dim), key_bytes)
        assert cache.nbytes <= 5_000
        assert cache.nbytes == sum(size for _, size in cache._entries.values())
