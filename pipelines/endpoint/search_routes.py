"""Routes for search: POST /search, and the search page at GET /."""

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
    """A token and its characters [start, stop) in the query or the passage's `text`; both null for
    special tokens and for tokens of the instruction or title.
    """

    text: str
    start: int | None
    stop: int | None


class PassageToken(TokenPlace):
    """A token of a passage."""

    score: float = Field(description="Largest inner product with a token of the query's text.")


class TokenWeight(BaseModel):
    """A token of a query's sparse vector."""

    token: str
    weight: float


class SharedToken(BaseModel):
    """A token of both sparse vectors. The sum of the products is the sparse score."""

    token: str
    query: float
    passage: float
    product: float


class HitExplained(BaseModel):
    """The tokens that explain the scores of a hit. Unknown parts are null."""

    sparse: list[SharedToken] | None = Field(None, description="Sorted by product, largest first.")
    passage_tokens: list[PassageToken] | None = Field(
        None, description="All tokens except the first, which has no ColBERT vector."
    )
    alignment: list[tuple[int, float]] | None = Field(
        None,
        description="For each of query_tokens: the position of its best match in passage_tokens "
        "and their inner product. The mean of these products is the ColBERT score.",
    )


class QueryExplained(BaseModel):
    """The tokens and weights of a query."""

    sparse: list[TokenWeight] | None = Field(None, description="Sorted by weight, largest first.")
    query_tokens: list[TokenPlace] | None = Field(
        None, description="All tokens except the first, which has no ColBERT vector."
    )


class HitBody(BaseModel):
    """A found passage. It also contains the requested columns of the index."""

    model_config = ConfigDict(extra="allow")

    rank: int = Field(description="Rank, from 1.")
    score: float = Field(description="Score by the mode.")
    scores: dict[Output, float] = Field(description="Score by each output.")
    explain: HitExplained | None = None


class ResultBody(BaseModel):
    """The hits of one query."""

    query: str
    hits: list[HitBody]
    explain: QueryExplained | None = None


class SearchResponse(BaseModel):
    """Search results, one per query."""

    model: str
    generation: int = Field(description="Generation of the index, fixed until a redeployment.")
    mode: Mode
    took_ms: float
    results: list[ResultBody]


_PAGE = Path(__file__).with_name("search_page.html")
_OFF = (
    "this endpoint does not search: set index: {uri: ...} and search: {} in its args and deploy it "
    "again"
)


def search_routes(search: SearchService | None) -> APIRouter:
    """Return the search routes; if `search` is None, POST /search says how to enable it (404)."""
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
        """Return the passages that answer each query best. Every passage is compared with it."""
        if search is None:
            raise ApiError(404, "no_search", _OFF)
        return json_answer(*await search.answer(body))

    # Not in the OpenAPI schema, because a page for browsers is not an API.
    @router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def search_page() -> HTMLResponse:
        """Return the static search page, which requests all its data from the API."""
        return HTMLResponse(page, headers=headers)

    return router


def content_security_policy(page: str) -> str:
    """Return a policy that allows only the page's own script and style, and only this endpoint."""
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
