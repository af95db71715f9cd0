"""Build the ASGI application: all routes of a service behind the guard. Does not import Ray.

Ray Serve runs it (pipelines.endpoint.deployment); so can other ASGI servers, such as uvicorn.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from actors.errors import EmbedError
from pipelines.endpoint.errors import ApiError, documented_refusals, error_response, route_path
from pipelines.endpoint.guard import App, Guard
from pipelines.endpoint.metrics import page
from pipelines.endpoint.native import native_routes
from pipelines.endpoint.openai import openai_routes
from pipelines.endpoint.rerank_routes import rerank_routes
from pipelines.endpoint.rerank_service import RerankService
from pipelines.endpoint.search_routes import search_routes
from pipelines.endpoint.search_service import SearchService
from pipelines.endpoint.service import Service
from pipelines.endpoint.tei import tei_routes

CollectMetrics = Callable[[], Awaitable[Mapping[str, list[Metric]]]]


_DESCRIPTION = """Vectors of queries and passages, computed by the encoder that made the index.

If the endpoint has API keys, requests without `Authorization: Bearer <key>` are answered with 401.
"""


def create_api(
    service: Service,
    keys: tuple[str, ...],
    collect: CollectMetrics,
    search: SearchService | None = None,
    rerank: RerankService | None = None,
) -> App:
    """Return the ASGI application.

    `collect`: returns the metrics of all replicas, by replica name. `search`, `rerank`: the
    services behind /search and /rerank. If None, these routes answer 404 and say how to enable it.
    """
    app = FastAPI(
        title="packvec",
        version=version("packvec"),
        description=_DESCRIPTION,
        redoc_url=None,
    )
    app.include_router(native_routes(service))
    app.include_router(openai_routes(service, rerank))
    app.include_router(tei_routes(service))
    app.include_router(search_routes(search))
    app.include_router(rerank_routes(rerank, service.encoder.info.name))
    app.include_router(_operator_routes(service, collect, search, rerank))
    _answer_errors(app, service)
    return Guard(app, service, keys)


def _operator_routes(
    service: Service,
    collect: CollectMetrics,
    search: SearchService | None,
    rerank: RerankService | None,
) -> APIRouter:
    router = APIRouter(tags=["operation"], responses=documented_refusals("native"))

    @router.get("/info")
    async def info() -> dict[str, object]:
        """Return the model, its fingerprint and the limits, under packvec's and TEI's names."""
        facts = service.encoder.info
        limits = service.config.limits
        return dataclasses.asdict(facts) | {
            "version": version("packvec"),
            "default_kind": service.config.default_kind,
            "title_prefix": service.chunk.title_prefix,
            "index": service.config.index.uri if service.config.index else None,
            "search": search.facts() if search else None,
            "reranker": rerank.facts() if rerank else None,
            "max_body_bytes": limits.max_body_bytes,
            "too_long": limits.too_long,
            "model_id": facts.name,
            "model_sha": facts.revision,
            "model_dtype": facts.dtype,
            "model_type": {"embedding": {"pooling": facts.pooling}},
            "max_input_length": service.reader.max_tokens(service.config.default_kind),
            "max_client_batch_size": limits.max_texts,
            "max_batch_tokens": service.encoder.max_batch_tokens,
            "max_concurrent_requests": limits.max_queued_texts,
            "auto_truncate": limits.too_long == "truncate",
        }

    @router.get("/health")
    async def health() -> dict[str, str]:
        """Return 200 if the replica can encode a text now, else 503."""
        try:
            await asyncio.wait_for(
                service.check(), service.config.deployment.health_check_timeout_s
            )
        except (TimeoutError, EmbedError) as error:
            raise ApiError(503, "unhealthy", str(error) or "no answer in time") from error
        return {"status": "ok"}

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Return the metrics of all replicas in the Prometheus text format."""
        return Response(page(await collect()), media_type=CONTENT_TYPE_LATEST)

    return router


def _answer_errors(app: FastAPI, service: Service) -> None:
    def refuse(request: Request, error: ApiError) -> Response:
        route = getattr(request.scope.get("route"), "path", "other")
        service.metrics.errors.labels(route, error.code).inc()
        return error_response(error, route_path(request.scope))

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return refuse(request, error)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        is_json = first["type"] != "json_invalid"  # else `loc` is an offset, not a field
        field = ".".join(str(part) for part in first["loc"][1:] if is_json) or "body"
        message = first["msg"].removeprefix("Value error, ")
        return refuse(request, ApiError(422, "malformed", message, field=field))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "malformed")
        response = refuse(request, ApiError(error.status_code, code, str(error.detail)))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        # The client gets neither its text nor a stack trace. The log has the trace, but no text.
        return refuse(request, ApiError(500, "internal", "the endpoint failed; see its log"))
