"""Reranking routes: POST /rerank (TEI's API), /v1/rerank and /v2/rerank (Cohere's and Jina's)."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, Field
from starlette.responses import Response

from actors.pair_batching import PairScores
from actors.reranker import logistic
from pipelines.endpoint.errors import ApiError, documented_refusals, route_path
from pipelines.endpoint.rerank_service import RerankService
from pipelines.endpoint.route_parts import json_answer

_OFF = "this endpoint has no reranker: set reranker: {name: ...} in its args and deploy it again"
_TRUNCATE = "true: cut pairs that are too long; false: refuse them. Default: as configured."


class RerankRequest(BaseModel):
    """TEI's request. Its fields that have no meaning here are ignored."""

    query: str = Field(examples=["what is ray"])
    texts: list[str] = Field(examples=[["a distributed engine", "a flat fish"]])
    raw_scores: bool = Field(False, description="Return raw scores instead of values in (0, 1).")
    return_text: bool = False
    truncate: bool | None = Field(None, description=_TRUNCATE)
    truncation_direction: Literal["right", "Right", "left", "Left"] = Field(
        "right", description="The side at which a too long query or text is cut."
    )


class Rank(BaseModel):
    """The score of one text."""

    index: int = Field(description="Position of the text in the request, from 0.")
    score: float
    text: str | None = Field(None, description="Present only with `return_text`.")


def _with_text(document: Any) -> Any:
    """Raise one error, where pydantic would give one for each type that a document can have."""
    if isinstance(document, str) or (
        isinstance(document, dict) and isinstance(document.get("text"), str)
    ):
        return document
    found = "none" if isinstance(document, dict) else f"a value of type {type(document).__name__}"
    raise ValueError(f"expected a string or an object with text, found {found}")


class Document(BaseModel):
    """A document given as an object."""

    text: str


class CohereRequest(BaseModel):
    """Cohere's and Jina's request. Their fields that have no meaning here are ignored."""

    model: str | None = Field(None, description="Ignored, but the embedder's name is refused.")
    query: str = Field(examples=["what is ray"])
    documents: list[Annotated[str | Document, BeforeValidator(_with_text)]] = Field(
        examples=[["a distributed engine", "a flat fish"]]
    )
    top_n: Annotated[int, Field(ge=1)] | None = Field(None, description="Number of results.")
    return_documents: bool | None = None
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Longer documents are cut, also with truncate: false."
    )
    truncate: bool | None = Field(None, description=_TRUNCATE)


class CohereResult(BaseModel):
    """The score of one document."""

    index: int = Field(description="Position of the document in the request, from 0.")
    relevance_score: float = Field(description="A value in (0, 1).")
    document: Document | None = Field(None, description="Present only with `return_documents`.")


class Usage(BaseModel):
    """Number of tokens of all pairs, special tokens included."""

    total_tokens: int


class Meta(BaseModel):
    """The metadata that Cohere's clients expect."""

    api_version: dict[str, str]
    billed_units: dict[str, int] = Field(description="Always one search.")
    warnings: list[str] | None = Field(None, description="Names the documents that were cut.")


class CohereResponse(BaseModel):
    """Ranked documents, best first."""

    id: str = Field(description="A new UUID for each response.")
    model: str
    results: list[CohereResult]
    usage: Usage = Field(description="A field of Jina's API.")
    meta: Meta = Field(description="A field of Cohere's API.")


def rerank_routes(rerank: RerankService | None, embedder: str) -> APIRouter:
    """Return the reranking routes; if `rerank` is None, they answer 404 and say how to enable it.

    `embedder`: the name of the embedding model, which these routes refuse.
    """
    router = APIRouter()

    def service() -> RerankService:
        if rerank is None:
            raise ApiError(404, "no_reranker", _OFF)
        return rerank

    @router.post(
        "/rerank",
        response_model=list[Rank],
        tags=["text-embeddings-inference"],
        responses=documented_refusals("tei", lacks="reranker"),
    )
    async def rerank_texts(body: RerankRequest) -> Response:
        """Rank texts by how well they answer a query, best first."""
        found = await service().score(
            body.query,
            body.texts,
            "texts",
            truncate=body.truncate,
            keep_end=body.truncation_direction.lower() == "left",
        )
        scores = (found.scores if body.raw_scores else logistic(found.scores)).tolist()
        ranks: list[dict[str, Any]] = [
            {"index": row, "score": scores[row]}
            | ({"text": body.texts[row]} if body.return_text else {})
            for row in _best_first(found)
        ]
        return _answer(ranks, found)

    @router.post("/v2/rerank", include_in_schema=False)
    @router.post(
        "/v1/rerank",
        response_model=CohereResponse,
        tags=["Cohere"],
        responses=documented_refusals("cohere", lacks="reranker"),
    )
    async def rerank_documents(body: CohereRequest, request: Request) -> Response:
        """Rank documents by how well they answer a query, best first."""
        if body.model == embedder != service().info.name:
            message = f"expected a reranker ({service().info.name}), got an embedder"
            raise ApiError(422, "not_a_reranker", message, field="model")
        texts = [each if isinstance(each, str) else each.text for each in body.documents]
        found = await service().score(
            body.query,
            texts,
            "documents",
            truncate=body.truncate,
            max_text_tokens=body.max_tokens_per_doc,
        )
        scores = logistic(found.scores).tolist()
        results: list[dict[str, Any]] = [
            {"index": row, "relevance_score": scores[row]}
            | ({"document": {"text": texts[row]}} if body.return_documents else {})
            for row in _best_first(found)[: body.top_n]
        ]
        version = route_path(request.scope)[2:3]
        answer = {
            "id": str(uuid.uuid4()),
            "model": service().info.name,
            "results": results,
            "usage": {"total_tokens": found.tokens},
            "meta": {"api_version": {"version": version}, "billed_units": {"search_units": 1}}
            | _warnings(found),
        }
        return _answer(answer, found)

    return router


def _best_first(found: PairScores) -> list[int]:
    """Return rows by raw score, best first, and equal scores in request order.

    The logistic function would map different large scores to the same float.
    """
    order: list[int] = np.argsort(-found.scores, kind="stable").tolist()
    return order


def _warnings(found: PairScores) -> dict[str, list[str]]:
    """Return `warnings` that name the cut documents; empty if there are none."""
    rows = np.flatnonzero(found.truncated).tolist()
    some = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
    return {"warnings": [f"{len(rows):,} documents or the query were cut: {some}"]} if rows else {}


def _answer(body: Any, found: PairScores) -> Response:
    return json_answer(orjson.dumps(body), int(found.truncated.sum()))
