"""POST /search, and the page at GET / that asks it."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import HTMLResponse, Response

from actors.config import Output
from pipelines.config.sections import Mode
from pipelines.endpoint.errors import ApiError, documented_refusals
from pipelines.endpoint.route_parts import json_answer
from pipelines.endpoint.search_service import SearchBody, SearchService


class TokenPlace(BaseModel):
    """A token; `start` and `stop` in characters of the query or the passage's `text`, null where
    it is not of it: special, of the instruction or of the title.
    """

    text: str
    start: int | None
    stop: int | None


class PassageToken(TokenPlace):
    """A token of a passage."""

    score: float = Field(
        description="Inner product with the query's own token that is most like it."
    )


class TokenWeight(BaseModel):
    """A word of a query's sparse vector."""

    token: str
    weight: float


class SharedToken(BaseModel):
    """What both sparse vectors have; the products add up to the sparse score."""

    token: str
    query: float
    passage: float
    product: float


class HitExplained(BaseModel):
    """Which tokens made a hit's scores; what is null is not known."""

    sparse: list[SharedToken] | None = Field(None, description="The greatest product first.")
    passage_tokens: list[PassageToken] | None = Field(
        None, description="All but the first, which has no ColBERT vector."
    )
    alignment: list[tuple[int, float]] | None = Field(
        None,
        description="For each of query_tokens: its best of passage_tokens, and their inner "
        "product; the mean of these is the ColBERT score.",
    )


class QueryExplained(BaseModel):
    """A query as its vectors see it."""

    sparse: list[TokenWeight] | None = Field(None, description="The heaviest first.")
    query_tokens: list[TokenPlace] | None = Field(
        None, description="All but the first, which has no ColBERT vector."
    )


class HitBody(BaseModel):
    """A passage, with the columns of the index beside what is declared here."""

    model_config = ConfigDict(extra="allow")

    rank: int = Field(description="From 1.")
    score: float = Field(description="By the mode.")
    scores: dict[Output, float] = Field(description="By each output.")
    explain: HitExplained | None = None


class ResultBody(BaseModel):
    """What one query finds."""

    query: str
    hits: list[HitBody]
    explain: QueryExplained | None = None


class SearchResponse(BaseModel):
    """A result a query."""

    model: str
    generation: int = Field(description="Of the index; the same until the endpoint is redeployed.")
    mode: Mode
    took_ms: float
    results: list[ResultBody]


_PAGE = Path(__file__).with_name("search_page.html")
_OFF = (
    "this endpoint does not search: set index: {uri: ...} and search: {} in its args and deploy it "
    "again"
)


def search_routes(search: SearchService | None) -> APIRouter:
    """Routes bound to what searches; without one they say how to get it."""
    refusals = documented_refusals("native", lacks="index to search")
    router = APIRouter(tags=["packvec"], responses=refusals)
    page = _PAGE.read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": content_security_policy(page),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    @router.post("/search", response_model=SearchResponse)
    async def search_index(body: SearchBody) -> Response:
        """The passages of the index that answer queries best: all of them are compared."""
        if search is None:
            raise ApiError(404, "no_search", _OFF)
        return json_answer(*await search.answer(body))

    # Not in the schema: it is no part of the API.
    @router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def search_page() -> HTMLResponse:
        """The page; it knows nothing, and asks for all it shows."""
        return HTMLResponse(page, headers=headers)

    return router


def content_security_policy(page: str) -> str:
    """Only the page's own script and style run, and only this endpoint is asked."""
    own = {
        tag: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"
            for part in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        )
        for tag in ("script", "style")
    }
    return (
        f"default-src 'none'; script-src {own['script']}; style-src {own['style']}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    )
