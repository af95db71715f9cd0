"""Measures the cost of encoding one short query over HTTP, and its components.

    make bench-serve        python -m benchmarks.serve --only noop,naive --rounds 3

Four systems answer 1, 8 and 64 clients. A client sends its next request when it has its answer.

    ours    the endpoint (pipelines.endpoint.deployment) without cache, with 1 and with 2 replicas
    noop    a deployment with ours' options and answers of the same size: the limit of Serve itself
    naive   FastAPI, uvicorn and sentence-transformers, one forward pass per request: without Serve
    bare    the encoder without HTTP: 1, 8 or 64 queries per call, either back to back or with the
            pause before each call that a request would cause

They take turns of a few seconds in one run, so that disturbances of the machine affect all of them.
Figures are medians over rounds. Clients, proxy and replicas share the cores.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import re
import socket
import statistics
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

from benchmarks.load import Load, measure
from benchmarks.systems import THREADS, measure_bare, naive_server, noop_app, ours_app

_SYSTEMS = ("noop", "ours", "naive", "bare")
_PAUSE_SECONDS = 0.006  # what a request takes without its encoding, about
_PAUSED = f"bare, after {1e3 * _PAUSE_SECONDS:g} ms"
_VERSIONS = ("ray", "torch", "sentence-transformers", "fastapi", "uvicorn")
_FORWARDS = re.compile(r"^packvec_batch_texts_(sum|count)\{.*\} (\S+)$", re.MULTILINE)


@dataclass
class _System:
    name: str
    measure: Callable[[int, float], Load]
    """The function that runs one round: (clients, seconds) -> figures."""
    metrics_url: str | None = None
    loads: dict[int, list[Load]] = field(default_factory=dict)
    """Number of clients -> the figures of each round."""
    forwards: Counter[tuple[int, str]] = field(default_factory=Counter)
    """(number of clients, "sum" or "count") -> texts or forward passes."""

    def run(self, clients: int, seconds: float) -> None:
        before = self._forwards(clients)
        self.loads.setdefault(clients, []).append(self.measure(clients, seconds))
        self.forwards += self._forwards(clients) - before

    def figure(self, name: str, clients: int) -> float:
        return float(statistics.median(getattr(load, name) for load in self.loads[clients]))

    def row(self, clients: int) -> str:
        passes = self.forwards[clients, "count"]
        fill = {"noop": "-", "naive": "1", "bare": f"{clients}", _PAUSED: f"{clients}"}.get(
            self.name
        ) or (f"{self.forwards[clients, 'sum'] / passes:.1f}")
        times = " | ".join(f"{self.figure(name, clients):.2f}" for name in ("p50", "p95", "p99"))
        errors = sum(load.errors for load in self.loads[clients])
        speed = f"{self.figure('per_second', clients):,.0f}"
        return f"| {self.name} | {clients} | {speed} | {times} | {errors} | {fill} |"

    def _forwards(self, clients: int) -> Counter[tuple[int, str]]:
        found: Counter[tuple[int, str]] = Counter()
        if self.metrics_url:
            with urllib.request.urlopen(self.metrics_url) as page:
                for kind, value in _FORWARDS.findall(page.read().decode()):
                    found[clients, kind] += int(float(value))
        return found


def _start(args: argparse.Namespace, stack: ExitStack) -> list[_System]:
    """Start the requested systems and wait until they answer; the stack stops them."""

    def process() -> ProcessPoolExecutor:
        # Spawned: a fork would have this process's Ray.
        return stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))

    port, clients = _free_port(), process()

    def over_http(port: int, path: str) -> Callable[[int, float], Load]:
        return lambda n, seconds: clients.submit(
            measure, port, path, n, seconds, args.distinct
        ).result()

    cache_bytes = 64 << 20 if args.distinct else 0
    systems = []
    if {"noop", "ours"} & set(args.only):
        import ray
        from ray import serve

        cpus = 1 + THREADS * sum(args.replicas)
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
        stack.callback(ray.shutdown)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        stack.callback(serve.shutdown)
        if "noop" in args.only:
            serve.run(noop_app(), name="noop", route_prefix="/noop")
            systems.append(_System("noop", over_http(port, "/noop")))
        for replicas in args.replicas if "ours" in args.only else ():
            name = f"ours, {replicas} replica{'s' * (replicas > 1)}"
            path = f"/ours{replicas}"
            serve.run(ours_app(replicas, cache_bytes), name=path[1:], route_prefix=path)
            url = f"http://127.0.0.1:{port}{path}/metrics"
            systems.append(_System(name, over_http(port, f"{path}/encode"), url))
    if "naive" in args.only:
        port = _free_port()
        stack.enter_context(naive_server(port))
        systems.append(_System("naive", over_http(port, "/encode")))
    if "bare" in args.only:
        encoder = process()
        for name, pause in (("bare", 0.0), (_PAUSED, _PAUSE_SECONDS)):

            def measure_it(clients: int, seconds: float, pause: float = pause) -> Load:
                return encoder.submit(measure_bare, clients, seconds, pause).result()

            systems.append(_System(name, measure_it))
    return systems


def _print_report(systems: list[_System], args: argparse.Namespace) -> None:
    print("| system | clients | req/s | p50 ms | p95 ms | p99 ms | errors | texts per forward |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for clients, system in itertools.product(args.clients, systems):
        print(system.row(clients))
    named = {system.name: system for system in systems}
    ours = [system for system in systems if system.name.startswith("ours")]
    few, many = min(args.clients), max(args.clients)
    print()
    for system in ours:
        for name in ("noop", "naive", "bare", ours[0].name):
            if (other := named.get(name)) and other is not system:
                ratio = system.figure("per_second", many) / other.figure("per_second", many)
                print(f"- {system.name} / {name} at {many} clients: {ratio:.2f} of its req/s")
    if ours and {"noop", "bare"} <= set(named):
        for bare in ("bare", _PAUSED):
            p50s = [s.figure("p50", few) for s in (ours[0], named["noop"], named[bare])]
            print(
                f"- {ours[0].name} at {few} client{'s' * (few > 1)}: p50 {p50s[0]:.2f} ms = noop "
                f"{p50s[1]:.2f} + {bare} {p50s[2]:.2f} + {p50s[0] - p50s[1] - p50s[2]:.2f}"
            )
    sizes = {s.name: s.loads[many][-1].answer_bytes for s in systems if "bare" not in s.name}
    print("- bytes an answer:", ", ".join(f"{name} {size:,}" for name, size in sizes.items()))
    busy = max(load.cpu for s in systems for loads in s.loads.values() for load in loads)
    print(f"- the clients took at most {busy:.2f} of a core")
    print(f"- medians of {args.rounds} rounds of {args.seconds:g} s each, {date.today()}")
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    print(f"- {os.cpu_count()} cores of {cpu[1] if cpu else platform.machine()}, {THREADS} thread")
    found = [f"{name} {version(name)}" for name in _VERSIONS]
    print(f"- python {platform.python_version()}, {', '.join(found)}")
    settings = sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith("RAY_SERVE_"))
    print(f"- settings: {' '.join(settings) or 'no RAY_SERVE_* is set'}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    """Start the systems, let them take turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="of one system's turn")
    parser.add_argument("--clients", type=_numbers, default=[1, 8, 64])
    parser.add_argument("--replicas", type=_numbers, default=[1, 2], help="of ours")
    parser.add_argument("--only", type=lambda text: text.split(","), default=_SYSTEMS)
    parser.add_argument(
        "--distinct", type=int, help="only so many queries, and ours with its cache: HTTP alone"
    )
    args = parser.parse_args()
    # Everything that is started inherits these.
    os.environ |= {"RAY_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
    os.environ["OMP_NUM_THREADS"] = str(THREADS)
    with ExitStack() as stack:
        systems = _start(args, stack)
        for system, clients in itertools.product(systems, args.clients):
            system.measure(clients, 1.0)  # first requests are slow everywhere
        for turn, clients in itertools.product(range(args.rounds), args.clients):
            for system in systems[:: -1 if turn % 2 else 1]:
                system.run(clients, args.seconds)
            print(f"round {turn + 1}, {clients} clients", file=sys.stderr)
        _print_report(systems, args)


if __name__ == "__main__":
    main()
