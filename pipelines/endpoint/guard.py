"""ASGI middleware in front of all routes: checks API keys and body sizes, and counts requests.

It reads the body itself, so that it can refuse a too large body before all of it is in memory.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.errors import ConfigError
from pipelines.endpoint.config import AuthConfig
from pipelines.endpoint.errors import ApiError, error_response, route_path

if TYPE_CHECKING:
    from pipelines.endpoint.service import Service

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_DOCS = frozenset({"/docs", "/openapi.json"})
_OPEN = _DOCS | {"/health"}
_PAGE = "/"
"""A POST to this path is TEI's embed route. A GET returns the search page, which holds no data."""


def read_keys(auth: AuthConfig) -> tuple[str, ...]:
    """Return the API keys of the endpoint; empty if `auth` configures none.

    Raises:
        ConfigError: a configured source holds no key. This must not open the endpoint to everybody.
    """
    keys: list[str] = []
    if auth.keys_env is not None:
        found = os.environ.get(auth.keys_env, "").split(",")
        keys += _some(found, "auth.keys_env", f"keys in the environment variable {auth.keys_env}")
    if auth.keys_file is not None:
        path = Path(auth.keys_file).expanduser()
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"auth.keys_file: cannot read {path} ({error}).") from None
        found = [line.partition("#")[0] for line in lines]
        keys += _some(found, "auth.keys_file", f"one key per line in {path}")
    return tuple(keys)


def _some(found: Sequence[str], where: str, expected: str) -> list[str]:
    keys = [key.strip() for key in found if key.strip()]
    if not keys:
        raise ConfigError(f"{where}: expected {expected}, found none.")
    return keys


class Guard:
    """The middleware around the routes."""

    def __init__(self, app: App, service: Service, keys: Sequence[str]) -> None:
        self._app = app
        self._service = service
        self._digests = [_digest(key.encode()) for key in keys]
        self._max_body_bytes = service.config.limits.max_body_bytes
        self._metrics = service.metrics

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Check and count one request, and pass it to the routes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check_key(scope)
            if not self._service.is_warm and not _is_page(scope, _DOCS):
                raise ApiError(503, "not_warm", "the model is being loaded", retry_after=5)
            body = await self._read(scope, receive)
            if body is not None:
                await self._app(scope, _replay(body, receive), counted)  # answers its own ApiErrors
        except ApiError as error:
            self._metrics.errors.labels("other", error.code).inc()
            response = error_response(error, route_path(scope))
            response.headers["Connection"] = "close"  # a body may be unread
            await response(scope, receive, counted)
        finally:
            # Unknown paths share a label: otherwise each request could create a new one.
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - started)

    def _check_key(self, scope: Message) -> None:
        if not self._digests or _is_page(scope, _OPEN):
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        digest = _digest(key.strip())
        # Compare with every key, each in constant time: the duration must not reveal a key.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != b"bearer" or not any(matches):
            expected = "'Authorization: Bearer KEY' with a key of this endpoint"
            message = f"expected {expected}, found {'another value' if given else 'none'}"
            raise ApiError(401, "invalid_api_key", message)

    async def _read(self, scope: Message, receive: Receive) -> bytes | None:
        """Return the whole body, or None if the client has disconnected."""
        declared = dict(scope["headers"]).get(b"content-length", b"")
        size = int(declared) if declared.isdigit() else 0
        most = self._max_body_bytes
        parts: list[bytes] = []
        read = 0
        while True:
            if (found := max(size, read)) > most:
                too_large = (
                    f"expected a body of at most {most:,} bytes, found {found:,}; send the texts "
                    "in several requests"
                )
                raise ApiError(413, "body_too_large", too_large)
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            read += len(parts[-1])
            if not message.get("more_body", False) and read <= most:
                return b"".join(parts)


def _is_page(scope: Message, paths: Collection[str]) -> bool:
    """Return whether a request is for one of these paths or for the search page."""
    path = route_path(scope)
    return path in paths or (path == _PAGE and scope["method"] in ("GET", "HEAD"))


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body as one message, then the messages of `receive`."""
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return unread.pop() if unread else await receive()

    return replayed
