"""Shards as Serve deployments: one replica each, started again by Serve when it dies.

A deployment is named after the rows it has, its generation included: a replica that has not been
replaced yet never asks shards of another generation, or of another number.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from actors.config import Output
from pipelines.cluster.ray_cluster import refuse_local_index
from pipelines.config.sections import SearchConfig
from pipelines.endpoint.config import EndpointConfig
from pipelines.search.searcher import Searcher, ShardCalls, ShardDownError
from pipelines.search.shard_files import ShardRequest
from pipelines.search.shard_host import ShardHost
from pipelines.search.shards import check, cpus_of, n_shards, request
from pipelines.search.space import model_to_load, searched_index


@dataclasses.dataclass(frozen=True)
class ServedShards:
    """What a replica of the endpoint is told of the shards it asks."""

    handles: Sequence[Any]
    """Applications when it is built, `DeploymentHandle`s in a replica."""
    outputs: tuple[Output, ...]
    generation: int


def bind_shards(config: EndpointConfig) -> ServedShards | None:
    """Shards of a generation of the index, which stays theirs; None without `search`.

    Raises:
        IndexStateError: no index, or none of the endpoint's outputs in it. ConfigError: it does not
            fit the memory. StorageError: it cannot be read, or is local on several machines.
    """
    if config.search is None or config.index is None:
        return None
    model, _ = model_to_load(config.model, config.outputs, config.chunk, config.index)
    index, outputs = searched_index(config.index, model.outputs)
    refuse_local_index(index.store)
    machines = sum(node["Alive"] for node in ray.nodes())
    check(index, outputs, config.search, machines)
    n = n_shards(index, config.search.shards or machines)
    requests = [request(index, outputs, config.search, number, n) for number in range(n)]
    handles = [_deployment(one, config, config.search) for one in requests]
    return ServedShards(handles, outputs, index.info.generation)


def open_shards(shards: ServedShards, config: EndpointConfig) -> Searcher:
    """Asks them from a replica; waits until all are loaded."""
    assert config.search is not None
    seconds = config.limits.search_timeout_s
    n = len(shards.handles)
    calls = [
        _Handle(handle, f"shard {number} of {n}", seconds)
        for number, handle in enumerate(shards.handles)
    ]
    for handle in shards.handles:
        handle.n_rows.remote().result()  # however long that takes: Serve watches over a start
    return Searcher(calls, shards.outputs, config.search)


def _deployment(one: ShardRequest, config: EndpointConfig, search: SearchConfig) -> Application:
    cpus = cpus_of(search)
    one = dataclasses.replace(one, threads=cpus)
    rows = repr((one.uri, one.generation, one.shards, one.outputs))
    return serve.deployment(
        ShardHost,
        name=f"shard-{one.number}-{hashlib.sha256(rows.encode()).hexdigest()[:8]}",
        num_replicas=1,
        ray_actor_options={"num_cpus": cpus, "num_gpus": search.gpus_per_shard},
        # Its callers bound what waits: a few threads of each replica, `limits.max_searches`.
        max_ongoing_requests=64,
        health_check_period_s=config.deployment.health_check_period_s,
        health_check_timeout_s=config.deployment.health_check_timeout_s,
        graceful_shutdown_timeout_s=config.deployment.graceful_shutdown_timeout_s,
        graceful_shutdown_wait_loop_s=0.5,
        max_constructor_retry_count=3,
    ).bind(one)


class _Handle(ShardCalls):
    def __init__(self, handle: DeploymentHandle, name: str, seconds: float) -> None:
        self._handle, self._name, self._seconds = handle, name, seconds

    def start(self, method: str, *args: Any, **named: Any) -> Callable[[], Any]:
        response = getattr(self._handle, method).remote(*args, **named)

        def wait() -> Any:
            try:
                return response.result(timeout_s=self._seconds)
            except (RayActorError, RayServeException, TimeoutError) as error:
                raise ShardDownError(
                    f"expected an answer of {self._name} within {self._seconds:g} s, got none; if "
                    "it died, it is being started again"
                ) from error

        return wait
