"""Reranking: POST /rerank as text-embeddings-inference has it, /v1/rerank and /v2/rerank as Cohere
and Jina do.
"""

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
_TRUNCATE = "Cut a pair that is too long, or refuse it; as configured if not given."


class RerankRequest(BaseModel):
    """As TEI's; fields that mean nothing here are ignored."""

    query: str = Field(examples=["what is ray"])
    texts: list[str] = Field(examples=[["a distributed engine", "a flat fish"]])
    raw_scores: bool = Field(False, description="Scores as they are, not in (0, 1).")
    return_text: bool = False
    truncate: bool | None = Field(None, description=_TRUNCATE)
    truncation_direction: Literal["right", "Right", "left", "Left"] = Field(
        "right", description="Where a query or a text that is too long is cut."
    )


class Rank(BaseModel):
    """One text."""

    index: int = Field(description="In the request.")
    score: float
    text: str | None = Field(None, description="Not there unless asked for.")


def _with_text(document: Any) -> Any:
    """One message, where pydantic has one for each kind that a document can be."""
    if isinstance(document, str) or (
        isinstance(document, dict) and isinstance(document.get("text"), str)
    ):
        return document
    found = "none" if isinstance(document, dict) else f"a value of type {type(document).__name__}"
    raise ValueError(f"expected a string or an object with text, found {found}")


class Document(BaseModel):
    """A text with a name."""

    text: str


class CohereRequest(BaseModel):
    """As Cohere's and Jina's; fields of theirs that mean nothing here are ignored."""

    model: str | None = Field(None, description="There is one; refused if it is the embedder's.")
    query: str = Field(examples=["what is ray"])
    documents: list[Annotated[str | Document, BeforeValidator(_with_text)]] = Field(
        examples=[["a distributed engine", "a flat fish"]]
    )
    top_n: Annotated[int, Field(ge=1)] | None = Field(None, description="Only the best so many.")
    return_documents: bool | None = None
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Longer documents are cut, whatever truncate is."
    )
    truncate: bool | None = Field(None, description=_TRUNCATE)


class CohereResult(BaseModel):
    """One document."""

    index: int = Field(description="In the request.")
    relevance_score: float = Field(description="In (0, 1).")
    document: Document | None = Field(None, description="Not there unless asked for.")


class Usage(BaseModel):
    """Tokens of all pairs, special tokens included."""

    total_tokens: int


class Meta(BaseModel):
    """What Cohere's clients look for."""

    api_version: dict[str, str]
    billed_units: dict[str, int] = Field(description="One search.")
    warnings: list[str] | None = Field(None, description="Which documents were cut.")


class CohereResponse(BaseModel):
    """The best document first."""

    id: str = Field(description="Of this answer alone.")
    model: str
    results: list[CohereResult]
    usage: Usage = Field(description="As Jina has it.")
    meta: Meta = Field(description="As Cohere has it.")


def rerank_routes(rerank: RerankService | None, embedder: str) -> APIRouter:
    """Routes bound to what reranks; without one they say how to get it.

    `embedder`: the name of the endpoint's other model.
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
        """Texts by how well they answer a query, the best first."""
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
        """Documents by how well they answer a query, the best first."""
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
    """Rows by their scores before the logistic function, which makes great ones equal; of equal
    ones the first.
    """
    order: list[int] = np.argsort(-found.scores, kind="stable").tolist()
    return order


def _warnings(found: PairScores) -> dict[str, list[str]]:
    """None where no document was cut."""
    rows = np.flatnonzero(found.truncated).tolist()
    some = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
    return {"warnings": [f"{len(rows):,} documents were cut, or the query: {some}"]} if rows else {}


def _answer(body: Any, found: PairScores) -> Response:
    return json_answer(orjson.dumps(body), int(found.truncated.sum()))
