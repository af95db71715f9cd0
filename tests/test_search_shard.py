"""Exact search of a shard: equal to scoring every row one by one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.config import OUTPUTS
from actors.search.fusion import best_of_pairs, merge, reciprocal_rank_fusion
from actors.search.kernels import segments, segments_on_device
from actors.search.shard import Shard
from actors.search.top_rows import TopRows
from actors.vectors import fixed_size_lists

DIM = 4
VOCABULARY = 12
RANKINGS = ("dense", "sparse", "colbert", "hybrid")
WEIGHTS = (1.0, 0.5, 2.0)


def random_columns(rng: np.random.Generator, n: int, *, tokens: int = 5) -> pa.Table:
    """Vectors whose dense and sparse scores are exact in float32, with many ties."""
    eighths = lambda *shape: rng.integers(-3, 4, shape).astype(np.float16) / np.float16(8)  # noqa: E731
    lengths = rng.integers(0, tokens, n)
    sparse = [
        {
            "indices": sorted(rng.choice(VOCABULARY, rng.integers(0, 6), replace=False).tolist()),
            "values": [],
        }
        for _ in range(n)
    ]
    for row in sparse:
        row["values"] = (rng.integers(1, 5, len(row["indices"])) / 4).tolist()
    kind = pa.struct([("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))])
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    tokens_TD = fixed_size_lists(eighths(int(lengths.sum()), DIM))
    return pa.table(
        {
            "dense": fixed_size_lists(eighths(n, DIM)),
            "sparse": pa.array(sparse, kind),
            "colbert": pa.ListArray.from_arrays(offsets, tokens_TD),
        }
    )


def naive_score(query: dict[str, Any], row: dict[str, Any], by: str) -> float:
    if by == "dense":
        return float(np.dot(np.float64(query["dense"]), np.float64(row["dense"])))
    if by == "sparse":
        mine = dict(zip(query["sparse"]["indices"], query["sparse"]["values"], strict=True))
        theirs = dict(zip(row["sparse"]["indices"], row["sparse"]["values"], strict=True))
        return float(sum(mine[i] * theirs[i] for i in mine.keys() & theirs.keys()))
    if by == "colbert":
        if not query["colbert"] or not row["colbert"]:
            return 0.0
        products = np.float64(query["colbert"]) @ np.float64(row["colbert"]).T
        return float(products.max(axis=1).mean())
    parts = [naive_score(query, row, each) for each in OUTPUTS]
    return float(np.dot(parts, WEIGHTS) / sum(WEIGHTS))


def naive_ranking(
    query: dict[str, Any], rows: list[dict[str, Any]], docs: Sequence[str], by: str, unit: str
) -> list[tuple[float, int]]:
    """(score, row), best first."""
    scored = [(naive_score(query, row, by), i) for i, row in enumerate(rows)]
    if unit == "document":
        best: dict[str, float] = {}
        for score, i in scored:
            best[docs[i]] = max(best.get(docs[i], -np.inf), score)
        scored = [(score, list(docs).index(doc)) for doc, score in best.items()]
    if by == "sparse":
        scored = [pair for pair in scored if pair[0] > 0]
    return sorted(scored, key=lambda pair: (-pair[0], pair[1]))


def in_blocks(column: pa.ChunkedArray, cuts: Sequence[int]) -> pa.ChunkedArray:
    array = column.combine_chunks()
    bounds = [0, *cuts, len(array)]
    # Slices: blocks of one buffer, as those of a mapped file are.
    parts = [array.slice(a, b - a) for a, b in itertools.pairwise(bounds)]
    return pa.chunked_array(parts, array.type)


def random_documents(rng: np.random.Generator, n: int) -> tuple[list[str], list[int]]:
    """Ids of rows, and a few places where a block may end."""
    ids = np.sort(rng.integers(0, max(n * 2 // 3, 1), n))
    ends = np.flatnonzero(np.diff(ids)) + 1
    some = rng.random(len(ends)) < 0.3
    return [f"d{i}" for i in ids], ends[some].tolist()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 30),
    n_queries=st.integers(1, 4),
    top=st.integers(1, 12),
    unit=st.sampled_from(["passage", "document"]),
)
def test_shard_rank_equals_scoring_every_row(
    seed: int, n: int, n_queries: int, top: int, unit: Any
) -> None:
    rng = np.random.default_rng(seed)
    table, queries = random_columns(rng, n), random_columns(rng, n_queries)
    docs, cuts = random_documents(rng, n)
    vectors = {output: in_blocks(table[output], cuts) for output in OUTPUTS}
    ids = in_blocks(pa.chunked_array([pa.array(docs, pa.string())]), cuts)
    shard = Shard(ids, vectors)
    assert len(shard) == n
    found = shard.rank(queries, RANKINGS, top, unit=unit, weights=WEIGHTS)
    rows, asked = table.to_pylist(), queries.to_pylist()
    for by in RANKINGS:
        scores_QK, rows_QK = found[by]
        assert scores_QK.shape == rows_QK.shape == (n_queries, top)
        for query, scores, places in zip(asked, scores_QK, rows_QK, strict=True):
            expected = naive_ranking(query, rows, docs, by, unit)[:top]
            kept = places >= 0
            assert kept.sum() == len(expected) == np.isfinite(scores).sum()
            np.testing.assert_allclose(scores[kept], [s for s, _ in expected], atol=1e-5)
            if by in ("dense", "sparse"):  # exact in float32: also the order of ties
                assert places[kept].tolist() == [row for _, row in expected]
            else:
                everything = {r: s for s, r in naive_ranking(query, rows, docs, by, unit)}
                mine = [everything[row] for row in places[kept].tolist()]
                np.testing.assert_allclose(mine, scores[kept], atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 20))
def test_shard_score_of_pairs_equals_naive(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    table, queries = random_columns(rng, n), random_columns(rng, 3)
    docs, cuts = random_documents(rng, n)
    shard = Shard(
        in_blocks(pa.chunked_array([pa.array(docs)]), cuts),
        {output: in_blocks(table[output], cuts) for output in OUTPUTS},
    )
    query_M, row_M = rng.integers(0, 3, 15), rng.integers(0, n, 15)
    found = shard.score(queries, query_M, row_M)
    rows, asked = table.to_pylist(), queries.to_pylist()
    for output in OUTPUTS:
        expected = [
            naive_score(asked[q], rows[r], output) for q, r in zip(query_M, row_M, strict=True)
        ]
        np.testing.assert_allclose(found[output].to_numpy(), expected, atol=1e-5)
    first, stop = shard.document_rows(row_M).T
    assert [docs[i] for i in first] == [docs[r] for r in row_M] == [docs[i - 1] for i in stop]
    assert all(i == 0 or docs[i - 1] != docs[i] for i in first)
    assert all(i == n or docs[i - 1] != docs[i] for i in stop)


def test_shard_rank_by_several_threads_equals_that_by_one() -> None:
    rng = np.random.default_rng(3)
    table, queries = random_columns(rng, 200), random_columns(rng, 150)
    docs, cuts = random_documents(rng, 200)
    ids = in_blocks(pa.chunked_array([pa.array(docs)]), cuts)
    shard = Shard(ids, {output: in_blocks(table[output], cuts) for output in OUTPUTS})
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(shard.rank(queries, RANKINGS, 7, weights=WEIGHTS))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for by in RANKINGS:
        np.testing.assert_allclose(found[0][by][0], found[1][by][0], atol=1e-6)
    for by in ("dense", "sparse"):
        np.testing.assert_array_equal(found[0][by][1], found[1][by][1])


def test_shard_with_columns_of_other_blocks_is_refused() -> None:
    table = random_columns(np.random.default_rng(0), 4)
    ids = pa.chunked_array([pa.array(["a", "b"]), pa.array(["c", "d"])])
    with pytest.raises(ValueError, match="the same rows"):
        Shard(ids, {"dense": in_blocks(table["dense"], [1])})


def test_shard_of_mapped_vectors_makes_no_copy_of_them() -> None:
    table = random_columns(np.random.default_rng(0), 4)
    column = table["dense"].combine_chunks()
    shard = Shard(pa.chunked_array([pa.array(list("abcd"))]), {"dense": pa.chunked_array([column])})
    rows: Any = shard._blocks[0].rows["dense"]
    assert rows._rows_BD.data_ptr() == column.flatten().buffers()[1].address


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    blocks=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    k=st.integers(1, 12),
    on_device=st.booleans(),
)
def test_top_rows_of_blocks_equal_a_stable_sort_of_all(
    seed: int, blocks: list[int], k: int, on_device: bool
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 4, (3, sum(blocks))).astype(np.float32)
    scores[scores == 0] *= rng.choice([-1, 1])  # -0.0 equals 0.0
    best, first = TopRows(3, k), 0
    for n in blocks:
        tile = torch.from_numpy(scores[:, first : first + n].copy())
        if on_device:
            best.add_from_device(tile, first, above=-2.0)
        else:
            best.add(tile, first, above=-2.0)
        first += n
    found, rows = best.sorted()
    for query in range(3):
        order = np.argsort(-scores[query], kind="stable")
        order = order[scores[query][order] > -2][:k]
        assert rows[query][: len(order)].tolist() == order.tolist()
        assert found[query][: len(order)].tolist() == scores[query][order].tolist()
        assert (rows[query][len(order) :] == -1).all()
        assert np.isneginf(found[query][len(order) :]).all()


def test_top_rows_of_many_rows_equal_a_sort() -> None:
    """Enough of them for several rounds of throwing away."""
    scores = np.random.default_rng(1).standard_normal((5, 5_000)).astype(np.float32)
    best = TopRows(5, 10)
    for start in range(0, 5_000, 137):
        best.add(torch.from_numpy(scores[:, start : start + 137]), start)
    assert (best.sorted()[1] == np.argsort(-scores, axis=1)[:, :10]).all()


@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    reduce=st.sampled_from(["max", "sum"]),
)
@settings(deadline=None)
def test_segments_on_a_device_equal_those_of_numpy(lengths: list[int], reduce: str) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = torch.randn(3, int(offsets[-1]), generator=torch.Generator().manual_seed(0))
    there = segments_on_device(values, offsets, reduce)
    torch.testing.assert_close(segments(values, offsets, reduce), there)
    run = [values[:, a:b] for a, b in itertools.pairwise(offsets)]
    naive = [
        torch.zeros(3) if not r.shape[1] else (r.amax(1) if reduce == "max" else r.sum(1))
        for r in run
    ]
    torch.testing.assert_close(there, torch.stack(naive, 1))


def best(rows: list[list[int]], scores: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(scores, np.float32), np.array(rows)


def test_merge_of_shards_keeps_the_lower_row_of_equal_scores() -> None:
    nothing = -np.inf
    merged = merge(
        [best([[5, 1, -1]], [[2.0, 1.0, nothing]]), best([[7, 9, 8]], [[3.0, 2.0, 1.0]])], 4
    )
    assert merged[1].tolist() == [[7, 5, 9, 1]]
    assert merged[0].tolist() == [[3.0, 2.0, 2.0, 1.0]]


def test_reciprocal_rank_fusion_adds_what_ranks_give() -> None:
    nothing = -np.inf
    one = best([[4, 2, 9], [3, -1, -1]], [[9, 8, 7], [1, nothing, nothing]])
    other = best([[2, 9, 5], [-1, -1, -1]], [[3, 2, 1], [nothing] * 3])
    scores, rows = reciprocal_rank_fusion([one, other], top=4, k=60)
    assert rows.tolist() == [[2, 9, 4, 5], [3, -1, -1, -1]]
    np.testing.assert_allclose(
        scores[0], [1 / 62 + 1 / 61, 1 / 63 + 1 / 62, 1 / 61, 1 / 63], rtol=1e-6
    )


def test_best_of_pairs_in_any_order_sorts_within_queries() -> None:
    pairs = [np.array(a) for a in ([1, 0, 1, 0], [3, 3, 2, 8], [0.5, 0.1, 0.5, 0.9])]
    scores, rows = best_of_pairs(*pairs, queries=2, top=1)
    assert rows.tolist() == [[8], [2]]
    assert scores.tolist() == [[np.float32(0.9)], [0.5]]
