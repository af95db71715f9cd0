"""Deploy the endpoint on Ray Serve.

    serve run conf/serve.yaml            # import_path: pipelines.endpoint.deployment:build

Each replica holds one encoder and, if configured, one reranker. It loads them, compares the encoder
with the index and warms up before it accepts requests. All replicas share the search shards, which
are separate deployments.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import ray
from prometheus_client.metrics_core import Metric
from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig

from actors.encoder import Encoder, load_encoder
from actors.reranker import load_reranker
from pipelines.config.sections import ChunkConfig
from pipelines.endpoint.api import create_api
from pipelines.endpoint.config import EndpointConfig, parse_endpoint_config
from pipelines.endpoint.guard import App, read_keys
from pipelines.endpoint.rerank_service import RerankService
from pipelines.endpoint.search_service import SearchService
from pipelines.endpoint.search_shards import ServedShards, bind_shards, open_shards
from pipelines.endpoint.service import Service
from pipelines.search.space import check_same_space, model_to_load, space_of

logger = logging.getLogger("ray.serve")

_METRICS_SECONDS = 5.0


def build(args: dict[str, Any]) -> Application:
    """Return the Serve application for the `args` of a Serve config file.

    Raises:
        ConfigError: an unknown key or a value of the wrong type. Also raises as `bind_shards`.
    """
    config = parse_endpoint_config(args)
    wanted = config.deployment
    gpus = wanted.gpus
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
    replicas: dict[str, Any] = {"num_replicas": wanted.replicas}
    if wanted.autoscaling:
        replicas = {"autoscaling_config": wanted.autoscaling.model_dump()}
    deployment = QueryEndpoint.options(  # type: ignore[attr-defined]  # serve.deployment's
        ray_actor_options={"num_cpus": wanted.cpus, "num_gpus": gpus},
        max_ongoing_requests=wanted.max_ongoing_requests,
        health_check_period_s=wanted.health_check_period_s,
        health_check_timeout_s=wanted.health_check_timeout_s,
        graceful_shutdown_timeout_s=wanted.graceful_shutdown_timeout_s,
        graceful_shutdown_wait_loop_s=0.5,
        # Used only while every replica is full or none is warm yet.
        max_queued_requests=wanted.max_queued_requests,
        backpressure_config=BackpressureConfig(retry_after_s=2),
        max_surge_percent=wanted.surge_percent,
        # An error that stops one replica (another space, no such model) stops all of them.
        max_constructor_retry_count=1,
        **replicas,
    )
    shards = bind_shards(config)
    if shards and config.index:  # another generation may be published before a replica starts
        index = config.index.model_copy(update={"generation": shards.generation})
        config = config.model_copy(update={"index": index})
    return deployment.bind(config, shards)


@serve.deployment
@serve.ingress()
class QueryEndpoint:
    """One replica of the endpoint."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: EndpointConfig, shards: ServedShards | None = None
    ) -> None:
        """Load and warm up the models. Serve starts using the replica only if this succeeds."""
        self._keys = read_keys(config.auth)
        encoder, chunk = await asyncio.to_thread(_load, config)
        self._service = Service(encoder, config, chunk)
        self._search = None
        if shards:
            searcher = await asyncio.to_thread(open_shards, shards, config)
            self._search = await asyncio.to_thread(
                SearchService, self._service, searcher, shards.generation
            )
        self._rerank = None
        if config.reranker:
            reranker = await asyncio.to_thread(load_reranker, config.reranker)
            self._rerank = RerankService(reranker, config, self._service.metrics)
            await self._rerank.warm_up()
        await self._service.warm_up()
        self._replica = serve.get_replica_context().replica_id.unique_id
        if not self._keys:
            logger.warning("no API keys are configured (args.auth): the endpoint is open to all")

    def __serve_build_asgi_app__(self) -> App:
        """Return the ASGI application. Serve calls this after the constructor has finished."""
        return create_api(self._service, self._keys, self._collect, self._search, self._rerank)

    async def check_health(self) -> None:
        """Raise if the replica cannot encode. Serve polls this and replaces a failing replica."""
        await self._service.check()

    def own_metrics(self) -> tuple[str, list[Metric]]:
        """Return the name and the metrics of this replica."""
        return self._replica, self._service.metrics.collect()

    async def _collect(self) -> Mapping[str, list[Metric]]:
        """Return the metrics of all replicas that answer in time, at least those of this one."""
        context = serve.get_replica_context()
        handle = serve.get_deployment_handle(context.deployment, context.app_name)
        found = dict([self.own_metrics()])
        try:
            answers = await handle.broadcast("own_metrics").results_async(
                timeout_s=_METRICS_SECONDS, return_exceptions=True
            )
        except Exception as error:  # noqa: BLE001  a dying replica must not hide the others
            logger.warning("cannot collect the metrics of the other replicas: %r", error)
            return found
        return found | dict(answer for answer in answers if not isinstance(answer, Exception))


def _load(config: EndpointConfig) -> tuple[Encoder, ChunkConfig | None]:
    model, chunk = model_to_load(config.model, config.outputs, config.chunk, config.index)
    encoder = load_encoder(model)
    if config.index:
        check_same_space(space_of(config.index), model, encoder.info.dtype)
    return encoder, chunk
