"""Measures systems that take turns over the same texts, each in its own process.

In each round each system encodes all texts once, in reverse order every other round, so that
disturbances of the machine affect all systems. A peer has two rows: with its defaults, and at its
best.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from benchmarks.report import Row, figures

SHIPPED_BATCH = {"sentence-transformers": 32, "FlagEmbedding": 256}
"""The default batch size of each peer."""
_BEST = ", its best"
_BATCHES = (4, 8, 16, 32, 64)


class Pipe(Protocol):
    """The interface of `pipes.Pipe`, connected to an `encode_worker`."""

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the answer to one request."""
        ...


@dataclass(frozen=True, kw_only=True)
class Case:
    """The texts that all systems encode, and the model and outputs."""

    model: str
    profile: str
    outputs: tuple[str, ...]
    texts: list[str]
    lengths: list[int]
    """Tokens of each truncated text, counted by our tokenizer for all systems."""
    flops: int
    """Floating-point operations for these texts without padding."""


@dataclass(kw_only=True)
class Worker:
    """A running system."""

    system: str
    dtype: str
    pipe: Pipe
    facts: dict[str, Any]
    passes: dict[int, list[float]] = field(default_factory=dict)
    """Batch size -> the seconds of each round."""
    peaks: list[float] = field(default_factory=list)
    """The operations per second of bare matmuls in each round."""
    memory: int = 0

    def encode(self, batch_size: int, every: int = 1) -> float:
        """Return the seconds of one pass over the texts, or over every `every`-th text."""
        answer = self.pipe.ask(do="encode", batch_size=batch_size, every=every)
        self.memory = answer["peak_memory"]
        return float(answer["seconds"])

    def best_batch(self, texts: int) -> int:
        """Return the fastest batch size for half of the texts; try larger ones while that pays."""
        best = (float("inf"), 0)
        for size in sorted({_at_most(size, texts // 2) for size in _BATCHES}):
            seconds = self.encode(size, every=2)
            if seconds > 1.1 * best[0]:
                break
            best = min(best, (seconds, size))
        return best[1]


def _at_most(batch_size: int, texts: int) -> int:
    return max(1, min(batch_size, -(-texts // 4)))


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The system of one row of results."""

    name: str
    worker: Worker
    batch_size: int


def variants_of(workers: Sequence[Worker], texts: int) -> list[Variant]:
    """Warm up workers and return their rows; a system's last worker has its best compute type."""
    variants = []
    for worker in workers:
        worker.encode(_at_most(16, texts), every=4)  # what is slow once only
        if worker.system == "ours":
            variants.append(Variant(name="ours", worker=worker, batch_size=0))
            continue
        shipped = worker.dtype == "float32"
        last = [w for w in workers if w.system == worker.system][-1] is worker
        if shipped:
            size = _at_most(SHIPPED_BATCH[worker.system], texts)
            variants.append(Variant(name=worker.system, worker=worker, batch_size=size))
        if last:
            size = worker.best_batch(texts)
            name = worker.system + _BEST
            variants.append(Variant(name=name, worker=worker, batch_size=size))
    return variants


def measure(case: Case, workers: Sequence[Worker], rounds: int) -> list[Row]:
    """Measure all systems in turn, in reverse order every other round."""
    variants = variants_of(workers, len(case.texts))
    # Where a peer's best is what it ships with, one pass stands for both.
    passes = list(dict.fromkeys((id(v.worker), v.batch_size) for v in variants))
    by_id = {id(worker): worker for worker in workers}
    for turn in range(rounds):
        for key, batch_size in passes[:: -1 if turn % 2 else 1]:
            seconds = by_id[key].encode(batch_size)
            by_id[key].passes.setdefault(batch_size, []).append(seconds)
        for at_rest in workers:
            at_rest.peaks.append(at_rest.pipe.ask(do="peak")["flops_per_s"])
    variants = [_at_best(variant) for variant in variants]
    return [_row(case, variant, variants) for variant in variants]


def _at_best(variant: Variant) -> Variant:
    """Replace a peer's best batch size by its default if that was faster in the rounds."""
    if not variant.name.endswith(_BEST):
        return variant
    passes = variant.worker.passes
    return replace(
        variant, batch_size=min(passes, key=lambda size: statistics.median(passes[size]))
    )


def _row(case: Case, variant: Variant, variants: Sequence[Variant]) -> Row:
    ours = next((v for v in variants if v.name == "ours"), None)
    worker = variant.worker
    seconds = worker.passes[variant.batch_size]
    return {
        "system": variant.name,
        "model": case.model,
        "profile": case.profile,
        "dtype": worker.dtype,
        "batch_size": variant.batch_size or None,
        "outputs": list(case.outputs),
        "texts": len(case.texts),
        "tokens": sum(case.lengths),
        **figures(
            seconds,
            ours=ours.worker.passes[0] if ours else None,
            peaks=worker.peaks,
            tokens=sum(case.lengths),
            flops=case.flops,
        ),
        "peak_memory": worker.memory,
        "threads": worker.facts["threads"],
        "cosine": round(_alike(ours.worker, worker), 5) if ours else None,
        "versions": worker.facts["versions"],
    }


def _alike(one: Worker, other: Worker) -> float:
    """Return the smallest cosine between two systems' vectors of the same text."""
    rows = [np.array(worker.facts["dense"]) for worker in (one, other)]
    ours, theirs = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rows)
    return float((ours * theirs).sum(axis=1).min())
