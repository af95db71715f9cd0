"""Shards as Ray actors, spread over the machines of a cluster for as long as a search lasts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray

from actors.config import Output
from pipelines.cluster import ray_session, refuse_local_index
from pipelines.config_sections import RayConfig, SearchConfig
from pipelines.index import Index
from pipelines.search.opening import check, n_shards, request
from pipelines.search.searcher import ShardCalls
from pipelines.search.shard_files import ShardRequest
from pipelines.search.shard_host import ShardHost


@contextmanager
def shard_actors(
    index: Index, outputs: Sequence[Output], search: SearchConfig, config: RayConfig
) -> Iterator[list[ShardCalls]]:
    """One actor a shard; gone at the end.

    Raises:
        ConfigError: no cluster, or too little memory on it. StorageError: a local index on several
            machines.
    """
    with ray_session(config):
        refuse_local_index(index.store)
        machines = sum(node["Alive"] for node in ray.nodes())
        check(index, outputs, search, machines)
        shards = n_shards(index, search.shards or machines)
        requests = [request(index, outputs, search, i, shards) for i in range(shards)]
        actors = [_Actor(one, search) for one in requests]
        try:
            yield list(actors)
        finally:
            for actor in actors:
                actor.stop()


def cpus_of(search: SearchConfig) -> int:
    """Half of a machine's: its other half encodes queries, and reads."""
    return search.cpus_per_shard or max((os.cpu_count() or 1) // 2, 1)


class _Actor(ShardCalls):
    def __init__(self, request: ShardRequest, search: SearchConfig) -> None:
        cpus = cpus_of(search)
        options = {
            "num_cpus": cpus,
            "num_gpus": search.gpus_per_shard,
            "scheduling_strategy": "SPREAD",
            "max_concurrency": 4,  # a search, and looking up rows meanwhile
        }
        self._actor = (
            ray.remote(ShardHost).options(**options).remote(replace(request, threads=cpus))
        )

    def start(self, method: str, *args: Any, **named: Any) -> Callable[[], Any]:
        reference = getattr(self._actor, method).remote(*args, **named)
        return lambda: ray.get(reference)

    def stop(self) -> None:
        ray.kill(self._actor)
