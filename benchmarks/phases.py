"""Measures the phases of our encoder."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import torch

from actors.encoder import Encoder
from benchmarks.measure import timed


def phases(encoder: Encoder, found: list[str], kind: str) -> dict[str, float | None]:
    """Return the seconds of tokenising, `stream`, and its kernels and rest (None on a CPU).

    Kernels and the rest may overlap; kernels / stream is the device's utilisation.
    """
    with timed(kind) as tokenize:
        tokens = encoder.passage_tokenizer.tokenize(found).to_arrow()
    with timed(kind) as stream:
        for _ in encoder.stream(tokens):
            pass
    kernels = _kernel_seconds(encoder, tokens) if kind == "cuda" else None
    rest = None if kernels is None else max(stream.seconds - kernels, 0.0)
    return {
        "tokenize": round(tokenize.seconds, 4),
        "stream": round(stream.seconds, 4),
        "kernels": None if kernels is None else round(kernels, 4),
        "rest": None if rest is None else round(rest, 4),
    }


def _kernel_seconds(encoder: Encoder, tokens: pa.ListArray) -> float:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in encoder.stream(tokens):
            pass
        torch.cuda.synchronize()
    return float(sum(event.self_device_time_total for event in profiler.key_averages())) / 1e6


def write_profile(encoder: Encoder, found: list[str], path: Path, kind: str) -> None:
    """Write torch's profile of one pass over the texts, costliest operations first."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if kind == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        encoder.encode_passages(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    order = "self_device_time_total" if kind == "cuda" else "self_cpu_time_total"
    path.write_text(profiler.key_averages().table(sort_by=order, row_limit=60) + "\n")
