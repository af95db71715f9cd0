"""Run shards as Ray Serve deployments of one replica each, which Serve restarts when they die.

The name of a deployment contains a hash of its rows and generation. During an update, an old
replica of the endpoint therefore never calls a shard of another generation or another division.
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
    """The shards that a replica of the endpoint calls."""

    handles: Sequence[Any]
    """`Application`s at build time, which Serve replaces by `DeploymentHandle`s in a replica."""
    outputs: tuple[Output, ...]
    generation: int


def bind_shards(config: EndpointConfig) -> ServedShards | None:
    """Return the shards of one fixed generation of the index, or None without `search`.

    Raises:
        IndexStateError: no index, or it has none of the endpoint's outputs. ConfigError: memory is
            too small. StorageError: the index cannot be read, or is local with several machines.
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
    """Return a searcher that calls the shards from a replica. Waits until all shards are loaded."""
    assert config.search is not None
    seconds = config.limits.search_timeout_s
    n = len(shards.handles)
    calls = [
        _Handle(handle, f"shard {number} of {n}", seconds)
        for number, handle in enumerate(shards.handles)
    ]
    for handle in shards.handles:
        handle.n_rows.remote().result()  # no timeout: Serve supervises the start of a shard
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
        # The callers limit the queue: a few threads per replica, and `limits.max_searches`.
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
                    "it died, it is being restarted"
                ) from error

        return wait
