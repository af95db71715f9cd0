"""The routes of packvec's own API: /encode and /score."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from actors.config import OUTPUTS, Output
from actors.search.fusion import weighted_mean
from actors.search.kernels import ROW_PAIRS
from actors.text_vectors import TextVectors, columns_of
from pipelines.endpoint.config import Kind
from pipelines.endpoint.errors import ApiError, documented_refusals
from pipelines.endpoint.route_parts import (
    ARROW,
    Body,
    Dimensions,
    Truncate,
    Weight,
    all_vectors,
    arrow_stream,
    encode_dims,
    json_response,
)
from pipelines.endpoint.service import Outcome, Service
from pipelines.endpoint.texts import Text


class EncodeRequest(Body):
    """Texts to encode."""

    texts: list[str] = Field(examples=[["when was the bridge built?"]])
    titles: list[str | None] | None = Field(
        None, description="Titles of passages, one per text, prefixed as the chunker does."
    )
    kind: Kind | None = Field(None, description="Kind of the texts; default: the endpoint's.")
    outputs: list[Output] | None = Field(
        None, min_length=1, description="Outputs to compute; default: all of the endpoint's."
    )
    truncate_dim: Dimensions = Field(
        None, description="Keep the first dimensions of dense and ColBERT vectors (Matryoshka)."
    )
    truncate: Truncate = None


class Sparse(BaseModel):
    """A sparse vector: the lexical weights of a text."""

    indices: list[int] = Field(description="Token ids, ascending.")
    values: list[float]


class Fault(BaseModel):
    """The reason why a text has no vectors."""

    row: int
    code: str = Field(description="empty_text, bad_encoding, too_long or encoder_error")
    message: str


class EncodeResponse(BaseModel):
    """Columns with one entry per text. An entry is null if the text has a row in `faults`."""

    model: str
    space_fingerprint: str
    n_tokens: list[int | None]
    truncated: list[bool | None]
    dense: list[list[float] | None] | None = None
    sparse: list[Sparse | None] | None = None
    colbert: list[list[list[float]] | None] | None = None
    faults: list[Fault]


class ScoreRequest(Body):
    """Pairs to score."""

    pairs: list[tuple[str, str]] = Field(description="[query, passage]")
    weights: tuple[Weight, Weight, Weight] = Field(
        (1.0, 1.0, 1.0), description="Weights of dense, sparse and ColBERT in `weighted`."
    )
    truncate: bool | None = None


class ScoreResponse(BaseModel):
    """Columns of scores, with one entry per pair."""

    model: str
    dense: list[float] | None = None
    sparse: list[float] | None = None
    colbert: list[float] | None = None
    weighted: list[float] = Field(description="Weighted mean of the other scores.")


def native_routes(service: Service) -> APIRouter:
    """Return the routes of `service`."""
    router = APIRouter(tags=["packvec"], responses=documented_refusals("native"))
    info = service.encoder.info
    facts = {"model": info.name, "space_fingerprint": info.space_fingerprint}

    @router.post(
        "/encode", response_model=EncodeResponse, responses={200: {"content": {ARROW: {}}}}
    )
    async def encode(body: EncodeRequest, request: Request) -> Response:
        """Encode texts; JSON, or Arrow with `Accept: application/vnd.apache.arrow.stream`."""
        texts = _texts(body, body.kind or service.config.default_kind)
        outputs = tuple(dict.fromkeys(body.outputs or service.outputs))
        results = await encode_dims(
            service, texts, outputs, body.truncate, dim=body.truncate_dim, field="truncate_dim"
        )
        if all(isinstance(result, ApiError) for result in results):
            all_vectors(results, "texts[{}]")  # raises
        if ARROW in request.headers.get("accept", ""):
            content = await asyncio.to_thread(arrow_stream, results, outputs, facts)
            return Response(content, media_type=ARROW)
        return await json_response(facts | _columns(results, outputs), results)

    @router.post("/score", response_model=ScoreResponse)
    async def score(body: ScoreRequest) -> Response:
        """Score pairs of query and passage by every output of the endpoint."""
        if not body.pairs:
            raise ApiError(400, "empty", "expected pairs, found none", field="pairs")
        texts = [Text("query", query) for query, _ in body.pairs]
        texts += [Text("passage", passage) for _, passage in body.pairs]
        found = await service.encode(texts, service.outputs, truncate=body.truncate)
        vectors = all_vectors(found, "pairs[{}]", len(body.pairs))
        used = [body.weights[OUTPUTS.index(output)] for output in service.outputs]
        if not np.float32(sum(used)):
            message = "expected a weight other than 0, found none"
            raise ApiError(422, "no_weight", message, field="weights")
        n = len(body.pairs)
        queries = columns_of(vectors[:n], service.outputs)
        passages = columns_of(vectors[n:], service.outputs)
        scores = {
            output: ROW_PAIRS[output](queries[output], passages[output])
            for output in service.outputs
        }
        weighted = weighted_mean(scores, body.weights)
        return await json_response({"model": info.name, **scores, "weighted": weighted}, found)

    return router


def _texts(body: EncodeRequest, kind: Kind) -> list[Text]:
    if not body.texts:
        raise ApiError(400, "empty", "expected texts, found none", field="texts")
    if body.titles is None:
        return [Text(kind, text) for text in body.texts]
    if kind != "passage":
        raise ApiError(422, "titles", "expected titles with kind=passage only", field="titles")
    if len(body.titles) != len(body.texts):
        message = f"expected as many titles as texts ({len(body.texts)}), got {len(body.titles)}"
        raise ApiError(422, "titles", message, field="titles")
    return [Text(kind, text, title) for text, title in zip(body.texts, body.titles, strict=True)]


def _columns(results: Sequence[Outcome], outputs: Sequence[Output]) -> dict[str, Any]:
    known = [result if isinstance(result, TextVectors) else None for result in results]
    names = ["n_tokens", "truncated", *(output for output in OUTPUTS if output in outputs)]
    columns = {name: [each and _shown(each, name) for each in known] for name in names}
    columns["faults"] = [
        {"row": row, "code": fault.code, "message": fault.message}
        for row, fault in enumerate(results)
        if isinstance(fault, ApiError)
    ]
    return columns


def _shown(vectors: TextVectors, name: str) -> Any:
    if name == "sparse" and vectors.sparse:
        return {"indices": vectors.sparse[0], "values": vectors.sparse[1]}
    return getattr(vectors, name)
