"""Error responses, in the format of the API that the request used.

    native    {"error": {"code": "...", "message": "...", "field": "..."}}
    OpenAI    {"error": {"message": "...", "type": "...", "param": "...", "code": "..."}}
    TEI       {"error": "...", "error_type": "..."}
    Cohere    {"message": "...", "code": "...", "detail": "..."}; Jina's clients read `detail`

Status: 400 nothing to encode, 401 no valid key, 404 and 405 no such route, 413 too large, 422
malformed, 424 the encoder failed on a text, 429 the queue is full, 503 not ready or shard down.
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
    401: "The API key is missing or wrong.",
    413: "Too many texts, too large a body, or a text that is too long.",
    422: "Malformed request; the error names the field and what was expected.",
    424: "The encoder failed on a text.",
    429: "The queue is full; Retry-After gives the seconds to wait.",
    503: "Not warm yet, not able to encode, or a search shard does not answer.",
}

_TEI_PATHS = ("/embed", "/embed_sparse", "/embed_all", "/rerank", "/tokenize", "/info", "/")
_COHERE_PATHS = ("/v1/rerank", "/v2/rerank")
_TEI_TYPES = {400: "Empty", 424: "Backend", 429: "Overloaded", 503: "Unhealthy"}


@dataclass(eq=False)
class ApiError(Exception):
    """The reason why a request is refused, or why one text of a request has no vectors."""

    status: int
    code: str
    message: str
    """A sentence that says what was expected and what was found."""
    _: KW_ONLY
    field: str | None = None
    """The field of the request's body that the error is about."""
    retry_after: float | None = None
    """Seconds after which the client may retry."""

    def at(self, field: str) -> ApiError:
        """Return the same error, about this field."""
        return ApiError(self.status, self.code, self.message, field=field)


def encoding_fault(text: str) -> ApiError | None:
    """Return an error if the text is not valid Unicode, else None."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return ApiError(422, "bad_encoding", "expected Unicode, found a lone surrogate")
    return None


def refuse_too_many(texts: Sized, most: int, field: str | None = None) -> None:
    """Check the number of texts in a request.

    Raises:
        ApiError: 413, more than `most` texts.
    """
    if (n := len(texts)) > most:
        message = f"expected at most {most:,} texts, got {n:,}; send them in several requests"
        raise ApiError(413, "too_many_texts", message, field=field)


def route_path(scope: Mapping[str, Any]) -> str:
    """Return the path of a request below the route prefix of the application."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "").rstrip("/")) or "/"


def shape_of(path: str) -> Shape:
    """Return the API that a path belongs to."""
    if path in _COHERE_PATHS:
        return "cohere"
    if path.startswith("/v1/"):
        return "openai"
    return "tei" if path in _TEI_PATHS else "native"


def documented_refusals(shape: Shape, lacks: str = "") -> dict[int | str, dict[str, Any]]:
    """Return an API's errors for the OpenAPI schema, and a 404 for an endpoint without `lacks`."""
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
    """Return the error as a response in the format of the API that `path` belongs to."""
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
