"""A run on a fake cluster of several nodes that lose a raylet, or are joined by one; prints JSON.

    python tests/changing_cluster.py lost|grown INDEX DOCUMENTS

A process of its own: a process is connected to one Ray cluster only.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"

import ray
from conftest import config_for
from ray.cluster_utils import Cluster

from pipelines import watch
from pipelines.config import RayConfig
from pipelines.done_records import read_done
from pipelines.embed_corpus import embed_corpus
from pipelines.storage import open_store

NODE = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": 100 << 20}
PATIENCE_SECONDS = 5.0
"""Until the pool is made smaller; in production a minute, for machines that come back."""


def lose(cluster: Cluster, nodes: list[Any], index: Path) -> None:
    """The raylet of one of two nodes is killed once some slices are done; it does not come back."""
    wait_for_slices(index, 3)
    nodes[-1].all_processes["raylet"][0].process.kill()


def grow(cluster: Cluster, nodes: list[Any], index: Path) -> None:
    """Another node joins once some slices are done."""
    wait_for_slices(index, 3)
    nodes.append(cluster.add_node(**NODE))


def wait_for_slices(index: Path, n: int) -> None:
    """Return once so many are done."""
    while sum(1 for _ in index.glob("runs/*/done/[!.]*")) < n:
        time.sleep(0.05)


CASES = {
    "lost": (lose, 2, {"actors": 2}),
    "grown": (grow, 1, {"min_actors": 1, "max_actors": 2}),
}


def main(case: str, index: Path, documents: Path) -> None:
    """Run it."""
    change, count, actors = CASES[case]
    watch._PATIENCE_SECONDS = PATIENCE_SECONDS
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0})
    nodes = [cluster.add_node(**NODE) for _ in range(count)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    config = config_for(documents, index={"uri": str(index)}, slice={"documents": 2})
    config = config.model_copy(update={"ray": RayConfig(**actors)})
    try:
        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(embed_corpus, config)
            change(cluster, nodes, index)  # only the main thread may add nodes
            manifest = run.result()
        done = read_done(open_store(str(index)), manifest.run_id)
        workers = [record.encoder.worker for record in done]
        found = {"counts": manifest.counts.model_dump(), "workers": workers}
        sys.stdout.write(f"\n{json.dumps(found)}\n")
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
