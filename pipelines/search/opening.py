"""Load the shards of an index, in this process or as actors of a Ray cluster.

with open_searcher(index, ("dense", "sparse"), config.search, config.ray) as searcher: ...
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from actors.config import Output
from pipelines.config.sections import RayConfig, SearchConfig
from pipelines.index.reader import Index
from pipelines.search.searcher import Searcher, ShardCalls
from pipelines.search.shard_files import ShardRequest
from pipelines.search.shards import check, cpus_of, n_shards, request


@contextmanager
def open_searcher(
    index: Index, outputs: Sequence[Output], search: SearchConfig, ray: RayConfig
) -> Iterator[Searcher]:
    """Open a searcher of the generation that `index` reads, and close it after the `with` block.

    Shards are Ray actors if a cluster is configured (`ray.address`, RAY_ADDRESS) or `search.shards`
    is set. Otherwise one shard is loaded into this process.

    Raises:
        ConfigError: memory is too small, or there is no cluster. IndexStateError, StorageError:
            the index cannot be read, or is local while the cluster has several machines.
    """
    if not (search.shards or ray.address or os.environ.get("RAY_ADDRESS")):
        check(index, outputs, search, 1)
        yield Searcher([_Here(request(index, outputs, search, 0, 1))], outputs, search)
        return

    from ray import nodes  # late: a search in this process needs no Ray

    from pipelines.cluster.ray_cluster import ray_session, refuse_local_index

    with ray_session(ray):
        refuse_local_index(index.store)
        machines = sum(node["Alive"] for node in nodes())
        check(index, outputs, search, machines)
        shards = n_shards(index, search.shards or machines)
        requests = [request(index, outputs, search, i, shards) for i in range(shards)]
        actors = [_Actor(one, search) for one in requests]
        try:
            yield Searcher(actors, outputs, search)
        finally:
            for actor in actors:
                actor.stop()


class _Here(ShardCalls):
    """A shard in this process."""

    def __init__(self, request: ShardRequest) -> None:
        from pipelines.search.shard_host import ShardHost  # late: torch

        self._host = ShardHost(request)

    def start(self, method: str, *args: Any, **named: Any) -> Callable[[], Any]:
        result = getattr(self._host, method)(*args, **named)
        return lambda: result


class _Actor(ShardCalls):
    def __init__(self, request: ShardRequest, search: SearchConfig) -> None:
        import ray

        from pipelines.search.shard_host import ShardHost  # late: torch

        self._ray, cpus = ray, cpus_of(search)
        options = {
            "num_cpus": cpus,
            "num_gpus": search.gpus_per_shard,
            "scheduling_strategy": "SPREAD",
            "max_concurrency": 4,  # so that rows can be looked up during a search
        }
        self._actor = (
            ray.remote(ShardHost).options(**options).remote(replace(request, threads=cpus))
        )

    def start(self, method: str, *args: Any, **named: Any) -> Callable[[], Any]:
        reference = getattr(self._actor, method).remote(*args, **named)
        return lambda: self._ray.get(reference)

    def stop(self) -> None:
        self._ray.kill(self._actor)
