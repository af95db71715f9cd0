"""Runs on Ray clusters other than the tests' own; each prints what it ended with as JSON.

    python tests/cluster_runs.py changing|small INDEX DOCUMENTS [MODEL]

A process of its own, since one is connected to one Ray cluster only.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"

import pyarrow as pa
import ray
import ray.cloudpickle
from conftest import config_for
from ray.cluster_utils import Cluster

from pipelines.cluster import watch
from pipelines.config import RunConfig
from pipelines.config.sections import RayConfig
from pipelines.embed_corpus import embed_corpus
from pipelines.plan.plan import read_done
from pipelines.run import on_ray
from pipelines.run.engine import EncodeJob
from pipelines.run.on_ray import EncodingActor
from pipelines.store import open_store

MIB = 1 << 20
NODE = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": 100 * MIB}
PATIENCE_SECONDS = 5.0
"""Until the pool is made smaller; in production a minute, for machines that come back."""


class SlowActor(EncodingActor):
    """Leaves nodes the time to come and go, and their processes the CPU to start."""

    def __call__(self, row: pa.Table) -> pa.Table:
        time.sleep(0.8)
        return super().__call__(row)


class MeasuredActor(EncodingActor):
    """Says how much memory its process had at most, what it maps of the object store included."""

    def __init__(self, job: EncodeJob, actors: int) -> None:
        super().__init__(job, actors)
        self._store = job.open_store()

    def __call__(self, row: pa.Table) -> pa.Table:
        done = super().__call__(row)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._store.overwrite(f"peaks/{row['first_document'][0]}", str(peak).encode())
        return done


def grow_and_lose(cluster: Cluster, index: Path) -> None:
    """A node joins; once its actor has done a slice its raylet is killed, for good."""
    wait_for(lambda: len(workers(index)) == 1)
    node = cluster.add_node(**NODE)
    wait_for(lambda: len(workers(index)) == 2)
    node.all_processes["raylet"][0].process.kill()


def workers(index: Path) -> set[str]:
    """Who has done slices."""
    runs = [path.name for path in index.glob("runs/*")]
    return {done.encoder.worker for run in runs for done in read_done(open_store(str(index)), run)}


def wait_for(what: Callable[[], bool]) -> None:
    """Return once it is so."""
    deadline = time.monotonic() + 120
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def changing(config: RunConfig) -> None:
    """Embed on a cluster of a head without GPU and a node, which changes meanwhile."""
    watch._PATIENCE_SECONDS = PATIENCE_SECONDS
    on_ray.EncodingActor = SlowActor  # type: ignore[misc]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0})
    try:
        cluster.add_node(**NODE)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        config = config.model_copy(update={"ray": RayConfig(min_actors=1, max_actors=2)})
        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(embed_corpus, config)
            grow_and_lose(cluster, Path(config.index.uri))  # only the main thread may add nodes
            run.result()
    finally:
        ray.shutdown()
        cluster.shutdown()


def small(config: RunConfig) -> None:
    """Embed with a small object store."""
    on_ray.EncodingActor = MeasuredActor  # type: ignore[misc]
    options = {"include_dashboard": False, "log_to_driver": False}
    ray.init("local", num_cpus=4, num_gpus=1, object_store_memory=400 * MIB, **options)
    try:
        embed_corpus(config)
    finally:
        ray.shutdown()


def main(case: str, index: str, documents: str, model: str = "builtin:tiny-m3") -> None:
    """Run it."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    if case == "small":
        sections = {
            "index": {"uri": index, "colbert_storage": "bytes"},
            "model": {"name": model, "max_length": 8192, "dtype": "float32"},
            "chunk": {"by": "none"},
            "slice": {},
            "ray": {"engine": "ray", "slices_per_actor": 1},
        }
        small(config_for(documents, **sections))
    else:
        changing(config_for(documents, index={"uri": index}, slice={"documents": 2}))
    (run_id,) = (path.name for path in Path(index, "runs").iterdir())
    done = read_done(open_store(index), run_id)
    found = {
        "workers": [record.encoder.worker for record in done],
        "peaks": [int(path.read_bytes()) for path in Path(index).glob("peaks/*")],
    }
    sys.stdout.write(f"\n{json.dumps(found)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
