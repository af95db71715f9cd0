"""Measures throughput and latency with concurrent HTTP clients in a closed loop.

The clients share the server's cores, so they do little work: they build request bytes beforehand,
and read only the status and Content-Length of an answer.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import cast

import uvloop

_CORPUS = Path(__file__).parents[1] / "tests/data/xquad-en/corpus.jsonl"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)")
# Longer than any answer takes; a server that has hung fails the benchmark.
_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Load:
    """The figures of a system in one round; times in milliseconds."""

    per_second: float
    """Successful answers within the round, in texts per second."""
    p50: float
    p95: float
    p99: float
    errors: int = 0
    """Answers with a status other than 200, and connections that the server closed."""
    answer_bytes: int = 0
    """Content-Length of the last answer."""
    cpu: float = 0.0
    """CPU seconds per second that the clients used."""


def summary(latencies: Sequence[float], **facts: float) -> Load:
    """Summarise the latencies of a round, given in seconds."""
    if len(latencies) < 2:
        return Load(p50=math.nan, p95=math.nan, p99=math.nan, **facts)  # type: ignore[arg-type]
    cuts = [1e3 * cut for cut in statistics.quantiles(latencies, n=100, method="inclusive")]
    return Load(p50=cuts[49], p95=cuts[94], p99=cuts[98], **facts)  # type: ignore[arg-type]


@cache
def queries() -> list[str]:
    """Return distinct runs of 3 to 10 words of real paragraphs, about as long as real queries."""
    chosen = random.Random(0)
    found = set()
    for line in _CORPUS.read_text().splitlines():
        words = json.loads(line)["text"].split()
        for start in range(len(words) - 10):
            found.add(" ".join(words[start : start + chosen.randint(3, 10)]))
    return chosen.sample(sorted(found), len(found))


@cache
def _requests(path: str, distinct: int | None) -> Iterator[bytes]:
    """Return an endless iterator that all rounds share, so that each sends different requests."""
    bodies = [json.dumps({"texts": [query]}).encode() for query in queries()[:distinct]]
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    return itertools.cycle(
        [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]
    )


def measure(
    port: int, path: str, clients: int, seconds: float, distinct: int | None = None
) -> Load:
    """Keep `clients` requests of one query each in flight at 127.0.0.1:`port` for `seconds`.

    `distinct`: the number of different queries, which are repeated; None for all.

    Raises:
        TimeoutError: an answer did not arrive.
    """
    requests = _requests(path, distinct)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(port, requests, clients, seconds))


async def _measure(port: int, requests: Iterator[bytes], clients: int, seconds: float) -> Load:
    used = time.process_time()
    started = time.perf_counter()
    tally = _Tally(requests, started + seconds)
    async with asyncio.timeout(seconds + _PATIENCE_SECONDS):
        await asyncio.gather(*(_stay_connected(port, tally) for _ in range(clients)))
    return summary(
        tally.latencies,
        per_second=tally.in_time / seconds,
        errors=tally.errors,
        answer_bytes=tally.answer_bytes,
        cpu=(time.process_time() - used) / (time.perf_counter() - started),
    )


@dataclass
class _Tally:
    requests: Iterator[bytes]
    deadline: float
    latencies: list[float] = field(default_factory=list)
    in_time: int = 0
    errors: int = 0
    answer_bytes: int = 0


async def _stay_connected(port: int, tally: _Tally) -> None:
    loop = asyncio.get_running_loop()
    while time.perf_counter() < tally.deadline:
        _, client = await loop.create_connection(lambda: _Client(tally), "127.0.0.1", port)
        await client.closed


class _Client(asyncio.Protocol):
    """A keep-alive connection that sends the next request after the answer to the last one."""

    def __init__(self, tally: _Tally) -> None:
        self._tally = tally
        self.closed = asyncio.get_running_loop().create_future()
        self._size = 0  # of the answer, known with its head

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._size:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            length = _LENGTH.search(self._received[:end].lower())
            assert length, f"an answer without Content-Length: {bytes(self._received[:end])!r}"
            self._tally.answer_bytes = int(length[1])
            self._size = end + 4 + int(length[1])
        if len(self._received) >= self._size:
            self._answered()

    def connection_lost(self, error: Exception | None) -> None:
        if self._waiting:
            self._tally.errors += 1
        if not self.closed.done():
            self.closed.set_result(None)

    def _send(self) -> None:
        self._received = bytearray()
        self._size = 0
        self._waiting = True
        self._sent = time.perf_counter()
        self._transport.write(next(self._tally.requests))

    def _answered(self) -> None:
        now = time.perf_counter()
        self._waiting = False
        if self._received[9:12] == b"200":
            # Also those in flight at the end: without them the slowest would be missing.
            self._tally.latencies.append(now - self._sent)
            self._tally.in_time += now <= self._tally.deadline
        else:
            self._tally.errors += 1
        if now < self._tally.deadline:
            self._send()
        else:
            self._transport.close()
