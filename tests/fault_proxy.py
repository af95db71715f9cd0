"""A TCP proxy before an HTTP server (moto's S3, or files) that breaks connections.

    with FaultProxy(server.endpoint) as proxy:
        proxy.inject("lose_answer", method="PUT", times=2)  # a plan: the next two that match
        proxy.inject_at_random(seed=7, rate=0.2)            # or: any request, any fault
        ... proxy.endpoint ...
        assert proxy.injected["lose_answer"] == 2

One request a connection: no client's habit of sending again what a kept connection lost hides a
fault.
"""

from __future__ import annotations

import random
import re
import socket
import struct
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

KINDS = {
    "drop": "the connection breaks before the request goes on",
    "cut_upload": "it breaks when half of the request's body went through",
    "lose_answer": "the request is served, then the connection breaks",
    "cut_answer": "it breaks in the middle of the answer's body",
    "stall": "no answer",
    "stall_answer": "half of the answer's body, and no more",
    "slow_down": "503 SlowDown",
    "internal": "500 InternalError",
}
UPLOAD_KINDS = [kind for kind in KINDS if "_answer" not in kind or kind == "lose_answer"]
DOWNLOAD_KINDS = [kind for kind in KINDS if kind != "cut_upload"]

_ERRORS = {"slow_down": (503, "SlowDown"), "internal": (500, "InternalError")}
_STALL_SECONDS = 30.0  # or until the client hangs up


@dataclass
class _Plan:
    kind: str
    method: str
    path: str
    times: int
    every: int
    seen: int = 0


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    head: bytes
    body: bytes


class FaultProxy:
    """A running proxy; leaving the block stops it."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._plans: list[_Plan] = []
        self._random: tuple[random.Random, float] | None = None
        self._stopped = threading.Event()
        self.injected: Counter[str] = Counter()
        """Kind -> how many so far."""
        self.requests: list[tuple[str, str]] = []
        """(method, path) of every request so far."""

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def inject(
        self, kind: str, method: str = "", path: str = "", *, times: int = 1, every: int = 1
    ) -> None:
        """The next `times` requests of this method (any) whose path has this text (any) fail.

        `every`: of so many that match, the last.
        """
        assert kind in KINDS
        with self._lock:
            self._plans.append(_Plan(kind, method, path, times, every))

    def inject_at_random(self, seed: int, rate: float) -> None:
        """Any request fails with this probability, in any way that it can."""
        with self._lock:
            self._random = random.Random(seed), rate

    def calm(self) -> None:
        """No more faults; what was counted is forgotten."""
        with self._lock:
            self._plans.clear()
            self._random = None
            self.injected.clear()
            self.requests.clear()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):  # a client that hung up, or a server that stopped
            client.settimeout(60)
            request = _receive(client)
            if request:
                self._answer(client, request, self._choose(request))

    def _choose(self, request: _Request) -> str | None:
        with self._lock:
            self.requests.append((request.method, request.path))
            kinds = UPLOAD_KINDS if request.body else DOWNLOAD_KINDS
            if request.method == "HEAD":  # an answer without a body
                kinds = [kind for kind in kinds if kind not in ("cut_answer", "stall_answer")]
            for plan in self._plans:
                matches = plan.method in ("", request.method) and plan.path in request.path
                if not (plan.times and matches and plan.kind in kinds):
                    continue
                plan.seen += 1
                if plan.seen % plan.every == 0:
                    plan.times -= 1
                    self.injected[plan.kind] += 1
                    return plan.kind
            if self._random and self._random[0].random() < self._random[1]:
                kind = self._random[0].choice(kinds)
                self.injected[kind] += 1
                return kind
            return None

    def _answer(self, client: socket.socket, request: _Request, kind: str | None) -> None:
        if kind in _ERRORS:
            status, code = _ERRORS[kind]
            body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
            head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\n"
            head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            client.sendall(head.encode() + (b"" if request.method == "HEAD" else body))
        elif kind == "stall":
            _wait_for_hangup(client)
        elif kind == "drop":
            _reset(client)
        elif kind == "cut_upload":
            with socket.create_connection(self._upstream, timeout=60) as server:
                server.sendall(request.head + request.body[: len(request.body) // 2])
                server.shutdown(socket.SHUT_WR)
                _read_all(server)  # what it makes of half a body is its own affair
            _reset(client)
        else:
            answer = self._forward(request)
            head, blank, body = answer.partition(b"\r\n\r\n")
            if kind == "lose_answer":
                _reset(client)
            elif kind == "cut_answer":
                client.sendall(head + blank + body[: len(body) // 2])
            elif kind == "stall_answer":
                client.sendall(head + blank + body[: len(body) // 2])
                _wait_for_hangup(client)
            else:
                client.sendall(answer)

    def _forward(self, request: _Request) -> bytes:
        with socket.create_connection(self._upstream, timeout=60) as server:
            server.sendall(request.head + request.body)
            return _read_all(server)


def _receive(client: socket.socket) -> _Request | None:
    """A whole request, to be sent on with Connection: close; None: the client hung up."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = client.recv(65536)
        if not more:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    if re.search(rb"(?i)\r\nexpect: *100-continue", head):
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert not re.search(rb"(?i)\r\ntransfer-encoding:", head), "a body of a length not said"
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    pieces, missing = [body], int(found[1]) - len(body) if found else 0
    while missing > 0:
        pieces.append(more := client.recv(min(missing, 1 << 20)))
        if not more:
            return None
        missing -= len(more)
    method, path, _ = head.split(b"\r\n")[0].decode().split(" ")
    head = re.sub(rb"(?i)\r\n(connection|expect):[^\r]*", b"", head)
    return _Request(method, path, head + b"\r\nConnection: close\r\n\r\n", b"".join(pieces))


def _read_all(server: socket.socket) -> bytes:
    pieces = []
    while piece := server.recv(1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


def _wait_for_hangup(client: socket.socket) -> None:
    client.settimeout(_STALL_SECONDS)
    with suppress(OSError):
        client.recv(1)


def _reset(client: socket.socket) -> None:
    """What the kernel of a machine that died answers: RST, not an end."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
