"""Routes of OpenAI's embeddings API: POST /v1/embeddings and GET /v1/models.

OpenAI's API does not distinguish queries from passages. A client sets the kind with `"kind"` in the
body (`extra_body` of OpenAI's client) or with a suffix of the model name (`BAAI/bge-m3:passage`).
Otherwise the endpoint's default applies. Other model names are ignored; the reranker's is refused.
"""

from __future__ import annotations

import base64
from typing import Literal

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from actors.text_vectors import TextVectors
from pipelines.endpoint.config import Kind
from pipelines.endpoint.errors import ApiError, documented_refusals
from pipelines.endpoint.rerank_service import RerankService
from pipelines.endpoint.route_parts import (
    Dimensions,
    TokenIds,
    all_vectors,
    encode_dims,
    json_response,
    texts_of,
)
from pipelines.endpoint.service import Service

_KINDS: dict[str, Kind] = {"query": "query", "passage": "passage"}


class EmbeddingsRequest(BaseModel):
    """OpenAI's request. Its fields that have no meaning here, such as `user`, are ignored."""

    input: str | TokenIds | list[str] | list[TokenIds] = Field(
        description="One or several texts, or token ids of this model, encoded without changes."
    )
    model: str = ""
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Dimensions = None
    user: str | None = None
    kind: Kind | None = Field(None, description="Kind of the texts; default: the endpoint's.")


class Embedding(BaseModel):
    """The vector of one text."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="Numbers, or base64 of float32, little-endian")


class Usage(BaseModel):
    """Number of tokens, including special tokens and the instruction."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    """OpenAI's response."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


def openai_routes(service: Service, rerank: RerankService | None = None) -> APIRouter:
    """Return the routes of `service`. /v1/models also lists the reranker of `rerank`."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=documented_refusals("openai"))
    name = service.encoder.info.name

    @router.post("/embeddings", response_model=EmbeddingsResponse)
    async def embeddings(body: EmbeddingsRequest) -> Response:
        """Return dense vectors, for OpenAI's clients."""
        model, kind = _parts(body.model)
        if rerank and model == rerank.info.name:
            message = f"expected an embedder ({name}), got a reranker; send it to /v1/rerank"
            raise ApiError(422, "not_an_embedder", message, field="model")
        kind = body.kind or kind or service.config.default_kind
        texts = texts_of(body.input, kind, service, "input")
        results = await encode_dims(
            service, texts, ["dense"], dim=body.dimensions, field="dimensions"
        )
        vectors = all_vectors(results, "input[{}]")
        tokens = sum(each.n_tokens for each in vectors)
        data = [
            {
                "object": "embedding",
                "index": row,
                "embedding": _base64(each) if body.encoding_format == "base64" else each.dense,
            }
            for row, each in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return await json_response(
            {"object": "list", "data": data, "model": name, "usage": usage}, results
        )

    @router.get("/models")
    async def models() -> dict[str, object]:
        """List the encoder and, if there is one, the reranker."""
        found = {name: "embed"} | ({rerank.info.name: "rerank"} if rerank else {})
        owned = {"object": "model", "created": 0, "owned_by": "packvec"}
        data = [{"id": each, **owned, "capabilities": [what]} for each, what in found.items()]
        return {"object": "list", "data": data}

    return router


def _base64(vectors: TextVectors) -> str:
    return base64.b64encode(np.asarray(vectors.dense, dtype="<f4").tobytes()).decode()


def _parts(model: str) -> tuple[str, Kind | None]:
    """Split a model name into the name and the kind of its suffix, if it has one."""
    name, _, kind = model.rpartition(":")
    return (name, _KINDS[kind]) if kind in _KINDS else (model, None)
