"""An endpoint without Ray: the routes over a tiny encoder, asked in this process."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
from conftest import ROOT
from prometheus_client.metrics_core import Metric

from actors.config import ModelConfig, RerankerConfig
from actors.encoder import Encoder, load_encoder
from actors.reranker import Reranker, load_reranker
from pipelines.endpoint.api import create_api
from pipelines.endpoint.config import parse_endpoint_config
from pipelines.endpoint.rerank_service import RerankService
from pipelines.endpoint.search_service import SearchService
from pipelines.endpoint.service import Service
from pipelines.search.searcher import Searcher

OUTPUTS = ("dense", "sparse", "colbert")
GENERATION = 7


@functools.cache
def tiny_encoder() -> Encoder:
    return load_encoder(
        ModelConfig(name="builtin:tiny-m3", outputs=OUTPUTS, max_length=64, dtype="float32")
    )


RERANKER = ROOT / "tests/data/oracle/models/bge-reranker-v2-m3"


@functools.cache
def tiny_reranker() -> Reranker:
    return load_reranker(
        RerankerConfig(name=str(RERANKER), max_length=96, dtype="float32", device="cpu")
    )


class Client:
    """Asks an endpoint; one event loop for all its requests."""

    def __init__(
        self,
        service: Service,
        keys: tuple[str, ...] = (),
        search: SearchService | None = None,
        rerank: RerankService | None = None,
    ) -> None:
        self.service = service
        self.rerank = rerank

        async def collect() -> Mapping[str, list[Metric]]:
            return {"r1": service.metrics.collect(), "r2": service.metrics.collect()}

        self.app = create_api(service, keys, collect, search, rerank)
        self._runner = asyncio.Runner()

    def run(self, coroutine: Any) -> Any:
        return self._runner.run(coroutine)

    def open(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://endpoint")

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with self.open() as client:
                return await client.request(method, path, **options)

        return self.run(ask())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.request("POST", path, json=body, **options)


@contextmanager
def endpoint(
    encoder: Encoder | None = None,
    keys: tuple[str, ...] = (),
    warm: bool = True,
    searcher: Searcher | None = None,
    rerank: Reranker | None = None,
    **sections: Any,
) -> Iterator[Client]:
    """A client of an endpoint with these configuration sections; it searches with `searcher`
    and reranks with `rerank`.
    """
    config = parse_endpoint_config({"model": {"name": "builtin:tiny-m3"}} | sections)
    service = Service(encoder or tiny_encoder(), config, config.chunk)
    search = SearchService(service, searcher, GENERATION) if searcher else None
    reranks = RerankService(rerank, config, service.metrics) if rerank else None
    client = Client(service, keys, search, reranks)
    if warm:
        client.run(service.warm_up())
    try:
        yield client
    finally:
        service.close()
        if search:
            search.close()
        if reranks:
            reranks.close()
        client._runner.close()
