"""Measures exact dense search of a shard against numpy and faiss-cpu, with vectors loaded.

    python -m benchmarks.search

Vectors are random unit vectors; every system compares all of them on all cores. numpy and faiss
hold float32. Ours maps float16, the format of an index, from an Arrow file. Systems take turns;
figures are medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import torch

from actors.search.shard import Shard
from actors.vectors import fixed_size_lists
from benchmarks.report import write

Search = Callable[[np.ndarray], np.ndarray]
_BLOCK_ROWS = 8_192
_TOP = 100


def unit_vectors(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    """Return random unit vectors, float32 [n, dim]."""
    vectors = rng.standard_normal((n, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def numpy_search(passages: np.ndarray) -> Search:
    """Return a search by one matmul and a selection of the best of each row."""

    def search(queries: np.ndarray) -> np.ndarray:
        scores = queries @ passages.T
        best = np.argpartition(scores, -_TOP, axis=1)[:, -_TOP:]
        own = np.take_along_axis(scores, best, axis=1)
        return np.take_along_axis(best, np.argsort(-own, axis=1), axis=1)

    return search


def faiss_search(passages: np.ndarray) -> Search:
    """Return a search by faiss's IndexFlatIP."""
    index = faiss.IndexFlatIP(passages.shape[1])
    index.add(passages)
    return lambda queries: index.search(queries, _TOP)[1]


def our_search(passages: np.ndarray, folder: Path) -> Search:
    """Return a search by a shard over a mapped file."""
    path = str(folder / "dense.arrow")
    ids = pa.array([str(i) for i in range(len(passages))])
    table = pa.table({"doc_id": ids, "dense": fixed_size_lists(passages.astype(np.float16))})
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table, max_chunksize=_BLOCK_ROWS)
    mapped = pa.ipc.open_file(pa.memory_map(path)).read_all()
    shard = Shard(mapped["doc_id"], {"dense": mapped["dense"]})

    def search(queries: np.ndarray) -> np.ndarray:
        columns = pa.table({"dense": fixed_size_lists(queries)})
        return shard.rank(columns, ["dense"], _TOP)["dense"][1]

    return search


def main() -> None:
    """Print a table and write benchmarks/results/search.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--queries", default="1,1000", help="batches, with commas between them")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()

    cpus = len(os.sched_getaffinity(0))
    torch.set_num_threads(cpus)
    faiss.omp_set_num_threads(cpus)
    rng = np.random.default_rng(0)
    # Numbers that float16 has: all systems then search the very same vectors.
    passages = unit_vectors(rng, options.passages, options.dim)
    passages = passages.astype(np.float16).astype(np.float32)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        systems = {
            "ours": our_search(passages, Path(folder)),
            "numpy": numpy_search(passages),
            "faiss": faiss_search(passages),
        }
        for batch in map(int, options.queries.split(",")):
            queries = unit_vectors(rng, batch, options.dim)
            found = {name: search(queries) for name, search in systems.items()}  # warm
            seconds: dict[str, list[float]] = {name: [] for name in systems}
            for turn in range(options.rounds):
                order = list(systems)
                for name in order[turn % 3 :] + order[: turn % 3]:
                    began = time.perf_counter()
                    systems[name](queries)
                    seconds[name].append(time.perf_counter() - began)
            rows += [
                {
                    "system": name,
                    "queries": batch,
                    "passages": options.passages,
                    "dim": options.dim,
                    "top": _TOP,
                    "seconds": [round(s, 5) for s in took],
                    "median": round(statistics.median(took), 5),
                    "ours_takes": round(
                        statistics.median(
                            o / t for o, t in zip(seconds["ours"], took, strict=True)
                        ),
                        3,
                    ),
                    "same_rows": round(float((found[name] == found["ours"]).mean()), 5),
                }
                for name, took in seconds.items()
            ]
    write("search", ("torch", "numpy", "faiss-cpu", "pyarrow"), rows, threads=cpus)
    print("| queries | passages | system | seconds | ours takes | same rows |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['queries']:,} | {row['passages']:,} | {row['system']} | {row['median']:.4f} | "
            f"{row['ours_takes']:.2f} x | {row['same_rows']:.2%} |"
        )


if __name__ == "__main__":
    main()
