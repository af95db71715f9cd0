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

DIM, VOCABULARY = 4, 12
RANKINGS = ("dense", "sparse", "colbert", "hybrid")
WEIGHTS = (1.0, 0.5, 2.0)
SEEDS = st.integers(0, 2**32 - 1)
SPARSE = pa.struct([("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))])
NOTHING = -np.inf


def random_columns(rng: np.random.Generator, n: int) -> pa.Table:
    """Vectors whose dense and sparse scores are exact in float32, with many ties."""

    def eighths(rows: int) -> pa.Array:
        numbers = rng.integers(-3, 4, (rows, DIM)).astype(np.float16)
        return fixed_size_lists(numbers / np.float16(8))

    sparse = []
    for _ in range(n):
        ids = sorted(rng.choice(VOCABULARY, rng.integers(0, 6), replace=False).tolist())
        sparse.append({"indices": ids, "values": (rng.integers(1, 5, len(ids)) / 4).tolist()})
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 5, n))])
    tokens = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), eighths(int(offsets[-1])))
    return pa.table({"dense": eighths(n), "sparse": pa.array(sparse, SPARSE), "colbert": tokens})


def naive_score(query: dict[str, Any], row: dict[str, Any], by: str) -> float:
    if by == "dense":
        return float(np.dot(np.float64(query["dense"]), np.float64(row["dense"])))
    if by == "sparse":
        mine, theirs = (dict(zip(*each["sparse"].values(), strict=True)) for each in (query, row))
        return float(sum(mine[i] * theirs[i] for i in mine.keys() & theirs.keys()))
    if by == "colbert":
        if not query["colbert"] or not row["colbert"]:
            return 0.0
        products = np.float64(query["colbert"]) @ np.float64(row["colbert"]).T
        return float(products.max(axis=1).mean())
    parts = [naive_score(query, row, each) for each in OUTPUTS]
    return float(np.dot(parts, WEIGHTS) / sum(WEIGHTS))


def naive_ranking(query, rows, docs: Sequence[str], by: str, unit: str) -> list[tuple[float, int]]:
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


def in_blocks(array: pa.Array, cuts: Sequence[int]) -> pa.ChunkedArray:
    """Slices: blocks of one buffer, as those of a mapped file are."""
    bounds = itertools.pairwise([0, *cuts, len(array)])
    return pa.chunked_array([array.slice(a, b - a) for a, b in bounds], array.type)


def random_shard(rng: np.random.Generator, n: int) -> tuple[Shard, pa.Table, list[str]]:
    """In blocks of whole documents; with its rows and their documents' ids."""
    table, ids = random_columns(rng, n), np.sort(rng.integers(0, max(n * 2 // 3, 1), n))
    ends = np.flatnonzero(np.diff(ids)) + 1
    cuts = ends[rng.random(len(ends)) < 0.3].tolist()
    docs = [f"d{i}" for i in ids]
    vectors = {output: in_blocks(table[output].combine_chunks(), cuts) for output in OUTPUTS}
    return Shard(in_blocks(pa.array(docs, pa.string()), cuts), vectors), table, docs


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    n=st.integers(0, 30),
    n_queries=st.integers(1, 4),
    top=st.integers(1, 12),
    unit=st.sampled_from(["passage", "document"]),
)
def test_shard_rank_equals_scoring_every_row(seed, n, n_queries, top, unit):
    rng = np.random.default_rng(seed)
    shard, table, docs = random_shard(rng, n)
    assert len(shard) == n
    queries, rows = random_columns(rng, n_queries), table.to_pylist()
    found = shard.rank(queries, RANKINGS, top, unit=unit, weights=WEIGHTS)
    for by in RANKINGS:
        scores_QK, rows_QK = found[by]
        assert scores_QK.shape == rows_QK.shape == (n_queries, top)
        for query, scores, places in zip(queries.to_pylist(), scores_QK, rows_QK, strict=True):
            every = naive_ranking(query, rows, docs, by, unit)
            expected, kept = every[:top], places >= 0
            assert kept.sum() == len(expected) == np.isfinite(scores).sum()
            np.testing.assert_allclose(scores[kept], [s for s, _ in expected], atol=1e-5)
            if by in ("dense", "sparse"):  # exact in float32: also the order of ties
                assert places[kept].tolist() == [row for _, row in expected]
            else:
                score_of = {row: score for score, row in every}
                mine = [score_of[row] for row in places[kept].tolist()]
                np.testing.assert_allclose(mine, scores[kept], atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, n=st.integers(1, 20))
def test_shard_score_of_pairs_equals_naive(seed, n):
    rng = np.random.default_rng(seed)
    shard, table, docs = random_shard(rng, n)
    queries, rows = random_columns(rng, 3), table.to_pylist()
    query_M, row_M = rng.integers(0, 3, 15), rng.integers(0, n, 15)
    found, asked = shard.score(queries, query_M, row_M), queries.to_pylist()
    for output in OUTPUTS:
        pairs = zip(query_M, row_M, strict=True)
        expected = [naive_score(asked[q], rows[r], output) for q, r in pairs]
        np.testing.assert_allclose(found[output].to_numpy(), expected, atol=1e-5)
    first, stop = shard.document_rows(row_M).T
    assert [docs[i] for i in first] == [docs[r] for r in row_M] == [docs[i - 1] for i in stop]
    assert all(i == 0 or docs[i - 1] != docs[i] for i in first)
    assert all(i == n or docs[i - 1] != docs[i] for i in stop)


def test_shard_rank_by_several_threads_equals_that_by_one():
    rng = np.random.default_rng(3)
    shard, queries = random_shard(rng, 200)[0], random_columns(rng, 150)
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


def test_shard_takes_columns_of_the_same_blocks_and_makes_no_copy_of_them():
    column = random_columns(np.random.default_rng(0), 4)["dense"].combine_chunks()
    ids = pa.array(list("abcd"))
    shard: Any = Shard(in_blocks(ids, []), {"dense": in_blocks(column, [])})
    address = shard._blocks[0].rows["dense"]._rows_BD.data_ptr()
    assert address == column.flatten().buffers()[1].address
    with pytest.raises(ValueError, match="chunks of the same length in every column"):
        Shard(in_blocks(ids, [2]), {"dense": in_blocks(column, [1])})


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    blocks=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    k=st.integers(1, 12),
    on_device=st.booleans(),
)
def test_top_rows_of_blocks_equal_a_stable_sort_of_all(seed, blocks, k, on_device):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 4, (3, sum(blocks))).astype(np.float32)
    scores[scores == 0] *= rng.choice([-1, 1])  # -0.0 equals 0.0
    best, first = TopRows(3, k), 0
    add = best.add_from_device if on_device else best.add
    for n in blocks:
        add(torch.from_numpy(scores[:, first : first + n].copy()), first, above=-2.0)
        first += n
    for mine, found, rows in zip(scores, *best.sorted(), strict=True):
        order = np.argsort(-mine, kind="stable")
        order = order[mine[order] > -2][:k]
        assert rows[: len(order)].tolist() == order.tolist()
        assert found[: len(order)].tolist() == mine[order].tolist()
        assert (rows[len(order) :] == -1).all()
        assert np.isneginf(found[len(order) :]).all()


def test_top_rows_of_many_rows_equal_a_sort():
    """Enough of them for several rounds of throwing away."""
    scores = np.random.default_rng(1).standard_normal((5, 5_000)).astype(np.float32)
    best = TopRows(5, 10)
    for start in range(0, 5_000, 137):
        best.add(torch.from_numpy(scores[:, start : start + 137]), start)
    assert (best.sorted()[1] == np.argsort(-scores, axis=1)[:, :10]).all()


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    reduce=st.sampled_from(["max", "sum"]),
)
def test_segments_on_a_device_equal_those_of_numpy(lengths, reduce):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = torch.randn(3, int(offsets[-1]), generator=torch.Generator().manual_seed(0))
    there = segments_on_device(values, offsets, reduce)
    torch.testing.assert_close(segments(values, offsets, reduce), there)
    function, naive = torch.amax if reduce == "max" else torch.sum, []
    for run in (values[:, a:b] for a, b in itertools.pairwise(offsets)):
        naive.append(function(run, 1) if run.shape[1] else torch.zeros(3))
    torch.testing.assert_close(there, torch.stack(naive, 1))


def best(rows, scores):
    return np.array(scores, np.float32), np.array(rows)


def test_merge_of_shards_keeps_the_lower_row_of_equal_scores():
    one, other = best([[5, 1, -1]], [[2, 1, NOTHING]]), best([[7, 9, 8]], [[3, 2, 1]])
    scores, rows = merge([one, other], 4)
    assert rows.tolist() == [[7, 5, 9, 1]]
    assert scores.tolist() == [[3.0, 2.0, 2.0, 1.0]]


def test_reciprocal_rank_fusion_adds_what_ranks_give():
    one = best([[4, 2, 9], [3, -1, -1]], [[9, 8, 7], [1, NOTHING, NOTHING]])
    other = best([[2, 9, 5], [-1, -1, -1]], [[3, 2, 1], [NOTHING] * 3])
    scores, rows = reciprocal_rank_fusion([one, other], top=4, k=60)
    assert rows.tolist() == [[2, 9, 4, 5], [3, -1, -1, -1]]
    expected = [1 / 62 + 1 / 61, 1 / 63 + 1 / 62, 1 / 61, 1 / 63]
    np.testing.assert_allclose(scores[0], expected, rtol=1e-6)


def test_best_of_pairs_in_any_order_sorts_within_queries():
    pairs = [np.array(a) for a in ([1, 0, 1, 0], [3, 3, 2, 8], [0.5, 0.1, 0.5, 0.9])]
    scores, rows = best_of_pairs(*pairs, queries=2, top=1)
    assert rows.tolist() == [[8], [2]]
    assert scores.tolist() == [[np.float32(0.9)], [0.5]]
