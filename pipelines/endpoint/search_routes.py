"""POST /search, and the page at GET / that asks it."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from pipelines.endpoint.answers import TRUNCATED_HEADER
from pipelines.endpoint.errors import ApiError, documented_refusals
from pipelines.endpoint.search_bodies import SearchRequest, SearchResponse
from pipelines.endpoint.search_service import SearchService

_PAGE = Path(__file__).with_name("search_page.html")
_OFF = (
    "this endpoint does not search: set index: {uri: ...} and search: {} in its args and deploy it "
    "again"
)


def search_routes(search: SearchService | None) -> APIRouter:
    """Routes bound to what searches; without one they say how to get it."""
    refusals = documented_refusals("native")
    refusals[404] = refusals[503] | {"description": "The endpoint has no index to search."}
    router = APIRouter(tags=["packvec"], responses=refusals)
    page = _PAGE.read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": content_security_policy(page),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    @router.post("/search", response_model=SearchResponse)
    async def search_index(body: SearchRequest) -> Response:
        """The passages of the index that answer queries best: all of them are compared."""
        if search is None:
            raise ApiError(404, "no_search", _OFF)
        answer = await search.answer(body)
        said = {TRUNCATED_HEADER: str(answer.truncated)} if answer.truncated else {}
        return Response(answer.content, 200, said, "application/json")

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
