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
from collections.abc import Mapping
from dataclasses import dataclass
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
_TEI_TYPES = {400: "Empty", 413: "Validation", 422: "Validation", 424: "Backend"} | {
    429: "Overloaded",
    503: "Unhealthy",
}


class ApiError(Exception):
    """A request that is not answered; `message` says what was expected and what was found."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.field = field
        self.retry_after = retry_after


@dataclass(frozen=True)
class TextFault:
    """Why one text of a request has no vectors."""

    status: int
    code: str
    message: str

    def as_error(self, row: int, field: str) -> ApiError:
        """The refusal of a request that needs all of its texts."""
        return ApiError(self.status, self.code, self.message, field=f"{field}[{row}]")


def encoding_fault(text: str) -> TextFault | None:
    """Why a text is no Unicode, where it is none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return TextFault(422, "bad_encoding", "expected Unicode, found a lone surrogate")
    return None


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


def documented_refusals(shape: Shape) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI schema of an API's routes."""
    key = "message" if shape == "cohere" else "error"
    body: dict[str, Any] = {
        "type": "object",
        "required": [key],
        "properties": {key: {"type": "string" if shape in ("tei", "cohere") else "object"}},
    }
    content = {"application/json": {"schema": body}}
    return {status: {"description": text, "content": content} for status, text in _REFUSALS.items()}


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
        return {
            "error": {
                "message": error.message,
                "type": kind,
                "param": error.field,
                "code": error.code,
            }
        }
    where = f"{error.field}: " if error.field else ""
    if shape == "tei":
        kind = _TEI_TYPES.get(error.status, "Validation")
        return {"error": f"{where}{error.message}", "error_type": kind}
    if shape == "cohere":
        message = f"{where}{error.message}"
        return {"message": message, "code": error.code, "detail": message}
    body = {"code": error.code, "message": error.message}
    return {"error": body | ({"field": error.field} if error.field else {})}
