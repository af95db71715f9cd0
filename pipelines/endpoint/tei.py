"""Routes of text-embeddings-inference: /embed (also at /), /embed_sparse, /embed_all, /tokenize.

As in TEI, `prompt_name` is the kind of the texts ("query" or "passage"); without it the endpoint's
default applies. /embed_all returns ColBERT vectors, one for each token except the first.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from actors.config import Output
from actors.text_vectors import TextVectors
from pipelines.endpoint.config import Kind
from pipelines.endpoint.errors import ApiError, documented_refusals, refuse_too_many
from pipelines.endpoint.route_parts import (
    Dimensions,
    TokenIds,
    Truncate,
    all_vectors,
    encode_dims,
    json_response,
    texts_of,
)
from pipelines.endpoint.service import Service
from pipelines.endpoint.texts import Text


class Inputs(BaseModel):
    """TEI's request. Its fields that have no meaning here are ignored."""

    inputs: str | TokenIds | list[str] | list[TokenIds]
    truncate: Truncate = None
    truncation_direction: Literal["right", "Right"] = "right"
    prompt_name: Kind | None = Field(None, description="Kind of the texts.")


class EmbedRequest(Inputs):
    """Texts to embed."""

    normalize: bool | None = Field(
        None, description="Must equal the configured model.normalize, if given."
    )
    dimensions: Dimensions = None


class SparseValue(BaseModel):
    """The weight of one token."""

    index: int
    value: float


class TokenizeRequest(BaseModel):
    """Texts to tokenise."""

    inputs: str | list[str]
    prompt_name: Kind | None = None
    add_special_tokens: bool = True


class Token(BaseModel):
    """A token and its characters [start, stop) in the text; null if it is not from the text."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


def tei_routes(service: Service) -> APIRouter:
    """Return the routes of `service`."""
    router = APIRouter(tags=["text-embeddings-inference"], responses=documented_refusals("tei"))

    async def vectors_of(body: Inputs, output: Output, dim: int | None = None) -> list[TextVectors]:
        kind = body.prompt_name or service.config.default_kind
        texts = texts_of(body.inputs, kind, service, "inputs")
        results = await encode_dims(
            service, texts, (output,), body.truncate, dim=dim, field="dimensions"
        )
        return all_vectors(results, "inputs[{}]")

    # huggingface_hub's InferenceClient posts to the root.
    @router.post("/", response_model=list[list[float]], operation_id="embed_at_root")
    @router.post("/embed", response_model=list[list[float]])
    async def embed(body: EmbedRequest) -> Response:
        """Return dense vectors."""
        if body.normalize not in (None, service.encoder.info.normalize):
            message = f"expected {not body.normalize} (model.normalize), got {body.normalize}"
            raise ApiError(422, "normalize", message, field="normalize")
        vectors = await vectors_of(body, "dense", body.dimensions)
        return await json_response([each.dense for each in vectors], vectors)

    @router.post("/embed_sparse", response_model=list[list[SparseValue]])
    async def embed_sparse(body: Inputs) -> Response:
        """Return sparse vectors."""
        vectors = await vectors_of(body, "sparse")
        rows = [
            [{"index": i, "value": v} for i, v in zip(ids.tolist(), values, strict=True)]
            for ids, values in (each.sparse for each in vectors if each.sparse is not None)
        ]
        return await json_response(rows, vectors)

    @router.post("/embed_all", response_model=list[list[list[float]]])
    async def embed_all(body: Inputs) -> Response:
        """Return ColBERT vectors, one for each token except the first."""
        vectors = await vectors_of(body, "colbert")
        return await json_response([each.colbert for each in vectors], vectors)

    @router.post("/tokenize", response_model=list[list[Token]])
    async def tokenize(body: TokenizeRequest) -> list[list[dict[str, Any]]]:
        """Return the tokens that the encoder sees, instruction included, without truncation."""
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        if not texts:
            raise ApiError(400, "empty", "expected a text, found none", field="inputs")
        refuse_too_many(texts, service.config.limits.max_texts)
        kind = body.prompt_name or service.config.default_kind
        return await asyncio.to_thread(
            service.reader.tokens, [Text(kind, text) for text in texts], body.add_special_tokens
        )

    return router
