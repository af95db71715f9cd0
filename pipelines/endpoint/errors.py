"""What a request is refused with, in the shape of the API it came to.

    native    {"error": {"code": "...", "message": "...", "field": "..."}}
    OpenAI    {"error": {"message": "...", "type": "...", "param": "...", "code": "..."}}
    TEI       {"error": "...", "error_type": "..."}
    Cohere    {"message": "...", "code": "...", "detail": "..."}; detail is Jina's word for message

Status: 400 nothing to encode, 401 no key, 404 and 405 no such route, 413 too much, 422 malformed,
424 the encoder failed on a text, 429 the queue is full, 503 not ready, or a shard is down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sized
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import orjson
from starlette.responses import Response

Shape = Literal["native", "openai", "tei", "cohere"]

_REFUSALS = {
    400: "Nothing to encode.",
    401: "No key of this endpoint.",
    413: "Too many texts, too large a body, or a text that is too long.",
    422: "Malformed: which field, what was expected.",
    424: "The encoder failed on a text.",
    429: "The queue is full; Retry-After says when to come again.",
    503: "Not warm, not able to encode, or a shard is down.",
}

_TEI_PATHS = ("/embed", "/embed_sparse", "/embed_all", "/rerank", "/tokenize", "/info", "/")
_COHERE_PATHS = ("/v1/rerank", "/v2/rerank")
_TEI_TYPES = {400: "Empty", 424: "Backend", 429: "Overloaded", 503: "Unhealthy"}


@dataclass(eq=False)
class ApiError(Exception):
    """Why a request is not answered, or why one text of it has no vectors."""

    status: int
    code: str
    message: str
    """What was expected, and what was found."""
    _: KW_ONLY
    field: str | None = None
    """Of the request's body."""
    retry_after: float | None = None
    """Seconds."""

    def at(self, field: str) -> ApiError:
        """The refusal of a request that needs what is in this field."""
        return ApiError(self.status, self.code, self.message, field=field)


def encoding_fault(text: str) -> ApiError | None:
    """Why a text is no Unicode, where it is none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return ApiError(422, "bad_encoding", "expected Unicode, found a lone surrogate")
    return None


def refuse_too_many(texts: Sized, most: int, field: str | None = None) -> None:
    """Refuse a request of more than `most` texts.

    Raises:
        ApiError: 413.
    """
    if (n := len(texts)) > most:
        message = f"expected at most {most:,} texts, got {n:,}; send them in several requests"
        raise ApiError(413, "too_many_texts", message, field=field)


def route_path(scope: Mapping[str, Any]) -> str:
    """A request's path below the application's route prefix."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "").rstrip("/")) or "/"


def shape_of(path: str) -> Shape:
    """The API a path belongs to."""
    if path in _COHERE_PATHS:
        return "cohere"
    if path.startswith("/v1/"):
        return "openai"
    return "tei" if path in _TEI_PATHS else "native"


def documented_refusals(shape: Shape, lacks: str = "") -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI schema of an API's routes; `lacks`: what the endpoint may not have (404)."""
    refusals = _REFUSALS | ({404: f"The endpoint has no {lacks}."} if lacks else {})
    key = "message" if shape == "cohere" else "error"
    body: dict[str, Any] = {
        "type": "object",
        "required": [key],
        "properties": {key: {"type": "string" if shape in ("tei", "cohere") else "object"}},
    }
    content = {"application/json": {"schema": body}}
    return {status: {"description": text, "content": content} for status, text in refusals.items()}


def error_response(error: ApiError, path: str) -> Response:
    """The refusal as the route's own API says it."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = orjson.dumps(_body(error, shape_of(path)))
    return Response(body, error.status, headers, "application/json")


def _body(error: ApiError, shape: Shape) -> dict[str, Any]:
    if shape == "openai":
        kind = "invalid_request_error" if error.status in range(400, 424) else "server_error"
        said = {"message": error.message, "type": kind, "param": error.field, "code": error.code}
        return {"error": said}
    message = f"{error.field}: {error.message}" if error.field else error.message
    if shape == "tei":
        return {"error": message, "error_type": _TEI_TYPES.get(error.status, "Validation")}
    if shape == "cohere":
        return {"message": message, "code": error.code, "detail": message}
    body = {"code": error.code, "message": error.message}
    return {"error": body | ({"field": error.field} if error.field else {})}
