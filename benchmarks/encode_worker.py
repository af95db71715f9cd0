"""Runs one system in its own process: loads a model, then encodes on request.

    python -m benchmarks.encode_worker      # with the python of the system's own environment

benchmarks.encode sends requests as JSON lines on standard input; each is answered by a JSON line on
standard output. The first request is a `Load`. Imports torch and the requested system only.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Transformer, matmul_rate, peak_memory, timed

_COMPARED = 8
_MATMUL_TOKENS = 2_048


@dataclass(frozen=True, kw_only=True)
class Load:
    """The configuration of a worker."""

    system: str
    folder: str
    pooling: str
    dtype: str
    outputs: list[str]
    max_length: int
    texts: list[str]


Encode = Callable[[list[str], int], tuple[np.ndarray, float]]
"""(texts, batch size) -> (dense vectors in host memory, seconds that are not counted)."""


def _ours(load: Load) -> Encode:
    """Encode texts to an Arrow table; the encoder makes its own batches."""
    from actors.config import ModelConfig
    from actors.encoder import load_encoder

    config = ModelConfig(
        name=load.folder,
        outputs=tuple(load.outputs),  # type: ignore[arg-type]  # checked there
        dtype=load.dtype,  # type: ignore[arg-type]
        max_length=load.max_length,
        device="cpu",
    )
    encoder = load_encoder(config)

    def encode(texts: list[str], batch_size: int) -> tuple[np.ndarray, float]:
        dense = encoder.encode_passages(texts)["dense"].combine_chunks()
        return dense.flatten().to_numpy().reshape(len(texts), -1), 0.0

    return encode


def _sentence_transformers(load: Load) -> Encode:
    """Encode with sentence-transformers, which sorts by length and pads."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(load.folder, device="cpu", model_kwargs={"dtype": load.dtype})
    model.max_seq_length = load.max_length
    return lambda texts, batch_size: (
        model.encode(texts, batch_size=batch_size, show_progress_bar=False),
        0.0,
    )


def _flagembedding(load: Load) -> Encode:
    """Encode with FlagEmbedding, which sorts by length and pads.

    float32 means its default, use_fp16, which on a CPU rounds the weights and computes in float32.
    Each `encode` first runs one batch as a probe, to see that it fits into memory. The probe costs
    half of a short list's time but almost none of a corpus's, so its seconds are not counted.
    """
    from FlagEmbedding import BGEM3FlagModel, FlagModel

    options: dict[str, Any] = {"passage_max_length": load.max_length, "devices": "cpu"}
    if load.dtype == "bfloat16":
        # "cpu:0" is the same device; for "cpu" it would go back to float32.
        options |= {"use_fp16": False, "use_bf16": True, "devices": "cpu:0"}
    options["pooling_method"] = load.pooling
    if Path(load.folder, "colbert_linear.pt").exists():
        three = len(load.outputs) > 1
        model = BGEM3FlagModel(
            load.folder, return_sparse=three, return_colbert_vecs=three, **options
        )
    else:
        model = FlagModel(load.folder, **options)
    probe = Probe(model.model)

    def encode(texts: list[str], batch_size: int) -> tuple[np.ndarray, float]:
        probe.reset()
        found = model.encode(texts, batch_size=batch_size)
        return found["dense_vecs"] if isinstance(found, dict) else found, probe.seconds

    return encode


class Probe:
    """Measures the seconds of a model's first forward pass since `reset`."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.reset()
        model.register_forward_pre_hook(lambda *_: self._begin())
        model.register_forward_hook(lambda *_: self._end())

    def reset(self) -> None:
        """Make the next forward pass the first one."""
        self.seconds, self._forwards = 0.0, 0

    def _begin(self) -> None:
        self._forwards += 1
        self._began = time.perf_counter()

    def _end(self) -> None:
        if self._forwards == 1:
            self.seconds = time.perf_counter() - self._began


SYSTEMS: dict[str, tuple[Callable[[Load], Encode], tuple[str, ...]]] = {
    "ours": (_ours, ("torch", "transformers", "tokenizers", "pyarrow")),
    "sentence-transformers": (
        _sentence_transformers,
        ("sentence-transformers", "torch", "transformers"),
    ),
    "FlagEmbedding": (_flagembedding, ("FlagEmbedding", "torch", "transformers")),
}


class Worker:
    """The requests that a parent process may send, one method each."""

    def __init__(self, load: Load) -> None:
        self._load = load
        make, self._packages = SYSTEMS[load.system]
        self._encode = make(load)

    def facts(self) -> dict[str, Any]:
        """Return facts of this process, and some vectors to compare with other systems."""
        dense, _ = self._encode(self._load.texts[:_COMPARED], _COMPARED)
        return {
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in self._packages},
            "dense": np.asarray(dense, dtype=np.float32).tolist(),
        }

    def encode(self, batch_size: int, every: int = 1) -> dict[str, Any]:
        """Encode all texts, or every `every`-th text, once."""
        with timed() as turn:
            _, uncounted = self._encode(self._load.texts[::every], batch_size)
        return {"seconds": turn.seconds - uncounted, "peak_memory": peak_memory()}

    def peak(self) -> dict[str, Any]:
        """Measure the rate of matmuls of the model's shapes in this process."""
        model = Transformer.of(Path(self._load.folder))
        rate = matmul_rate(model, self._load.dtype, tokens=_MATMUL_TOKENS)
        return {"flops_per_s": rate}


def main() -> None:
    """Answer requests until standard input ends."""
    # What libraries print must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker: Worker | None = None
    for line in sys.stdin:
        request = json.loads(line)
        name = request.pop("do")
        if name == "load":
            worker = Worker(Load(**request))
            answer = worker.facts()
        else:
            answer = getattr(worker, name)(**request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def request_of(load: Load) -> dict[str, Any]:
    """Return the first request as a dict."""
    return {"do": "load", **asdict(load)}


if __name__ == "__main__":
    main()
