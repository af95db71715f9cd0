"""Measures the encoder on a GPU against padded batches: speed, share of the matmul peak, phases.

    python -m benchmarks.gpu                       # bge-m3's shape, float16, under 8 minutes
    python -m benchmarks.gpu --profiles full512 --profile out/full512.txt
    python -m benchmarks.gpu --device cpu --models tiny-m3 --tokens 2000    # does it run?

Runs on a bare GPU machine: needs this repository, torch, transformers, pyarrow and numpy, but no
Ray, network or other environment. Weights are random, in the real shapes. Systems take turns in one
process:

    ours                    Encoder.encode_passages, for each token budget of --budgets
    padded                  FlagEmbedding's loop: sort, pad, sdpa (benchmarks.padded)
    sentence-transformers   if installed; in batches of 32 (its default) and of 256

For ours it also measures the seconds of each phase: tokenising, the device's kernels (by torch's
profiler), and the rest of `Encoder.stream`, which makes Arrow columns and waits.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch

from actors.config import ModelConfig
from actors.encoder import Encoder, load_encoder
from actors.tokens.tokenizer import TextTokenizer
from benchmarks.measure import Transformer, matmul_rate, peak_memory, timed
from benchmarks.options import some_of
from benchmarks.padded import Padded
from benchmarks.phases import phases, write_profile
from benchmarks.report import RESULTS, Row, figures, machine, save, table
from benchmarks.shapes import SHAPES, model_folder, outputs_of
from benchmarks.texts import PROFILES, TOKENS, texts

_MAX_LENGTH = 512
_MATMUL_TOKENS = {"cuda": 16_384, "cpu": 2_048}
_PADDED_BATCH = 256
_THEIR_BATCHES = (32, 256)
_MOST_TEXTS = 8_192
_PACKAGES = ("torch", "transformers", "tokenizers", "pyarrow", "sentence-transformers")


@dataclass(kw_only=True)
class System:
    """A system that takes turns with others."""

    name: str
    encode: Callable[[list[str]], Any]
    batch_size: int
    """Texts per batch; for ours, tokens per batch."""
    seconds: list[float] = field(default_factory=list)
    memory: int = 0


def _ours(encoder: Encoder, budget: int) -> Callable[[list[str]], Any]:
    def encode(found: list[str]) -> Any:
        encoder.max_batch_tokens = budget
        return encoder.encode_passages(found)

    return encode


def _systems(
    model: str, outputs: tuple[str, ...], encoder: Encoder, args: argparse.Namespace
) -> Iterator[System]:
    folder = model_folder(model)
    for budget in args.budgets:
        name = "ours" if budget == args.budgets[0] else f"ours, {budget:,} tokens"
        yield System(name=name, encode=_ours(encoder, budget), batch_size=budget)
    if "padded" in args.systems:
        padded = Padded(folder, outputs, args.dtype, args.device, _MAX_LENGTH)
        yield System(
            name="padded",
            encode=lambda found: padded.encode(found, _PADDED_BATCH),
            batch_size=_PADDED_BATCH,
        )
    known = importlib.util.find_spec("sentence_transformers")
    if "sentence-transformers" in args.systems and known and outputs == ("dense",):
        from sentence_transformers import SentenceTransformer

        theirs = SentenceTransformer(
            str(folder), device=args.device, model_kwargs={"dtype": args.dtype}
        )
        theirs.max_seq_length = _MAX_LENGTH
        for size in _THEIR_BATCHES:
            yield System(
                name="sentence-transformers" + ("" if size == _THEIR_BATCHES[0] else f", {size}"),
                encode=lambda found, size=size: theirs.encode(
                    found, batch_size=size, show_progress_bar=False
                ),
                batch_size=size,
            )


def measure(
    model: str, profile: str, outputs: tuple[str, ...], args: argparse.Namespace
) -> list[Row]:
    """Measure all systems in turn on the texts of one profile."""
    count = min(_MOST_TEXTS, max(8, args.tokens // TOKENS[profile]))
    found, folder = texts(profile, count), model_folder(model)
    lengths = TextTokenizer(folder, _MAX_LENGTH).tokenize(found).lengths.tolist()
    encoder = load_encoder(
        ModelConfig(
            name=str(folder),
            outputs=outputs,
            dtype=args.dtype,
            device=args.device,
            max_length=_MAX_LENGTH,
        )
    )
    systems = list(_systems(model, outputs, encoder, args))
    kind, shape = torch.device(args.device).type, Transformer.of(folder)
    peaks: list[float] = []
    for system in systems:
        system.encode(found[::4])  # what is slow once only
    for turn in range(args.rounds):
        for system in systems[:: -1 if turn % 2 else 1]:
            if kind == "cuda":
                torch.cuda.reset_peak_memory_stats()
            with timed(args.device) as pass_:
                system.encode(found)
            system.seconds.append(pass_.seconds)
            system.memory = max(system.memory, peak_memory(args.device))
        peaks.append(matmul_rate(shape, args.dtype, args.device, tokens=_MATMUL_TOKENS[kind]))
    encoder.max_batch_tokens = args.budgets[0]
    if args.profile:
        write_profile(encoder, found, args.profile, kind)
    rows = [
        {
            "system": system.name,
            "model": model,
            "profile": profile,
            "dtype": args.dtype,
            "batch_size": system.batch_size,
            "outputs": list(outputs),
            "texts": len(found),
            "tokens": sum(lengths),
            **figures(
                system.seconds,
                ours=systems[0].seconds,
                peaks=peaks,
                tokens=sum(lengths),
                flops=shape.flops(lengths, outputs),
            ),
            "peak_memory": system.memory,
        }
        for system in systems
    ]
    rows[0]["phases"] = phases(encoder, found, kind)
    return rows


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    peers = ["padded", "sentence-transformers"]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--models", type=some_of(("minilm", *SHAPES)), default=["bge-m3"])
    parser.add_argument("--profiles", type=some_of(list(TOKENS)), default=["full512", *PROFILES])
    parser.add_argument("--outputs", choices=("dense", "all", "both"), default="both")
    parser.add_argument("--systems", type=some_of(peers), default=peers)
    parser.add_argument(
        "--budgets",
        type=lambda text: [int(number) for number in text.split(",")],
        default=[16_384, 8_192, 65_536],
        help="token budgets of ours; others are compared with the first",
    )
    parser.add_argument("--tokens", type=int, default=400_000, help="about so many a pass")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=420.0, help="begin no case later")
    parser.add_argument("--profile", type=Path, help="write a profile of one pass of ours here")
    parser.add_argument("--results", type=Path, default=RESULTS / "gpu.json")
    args = parser.parse_args(arguments)
    args.dtype = args.dtype or ("float16" if args.device.startswith("cuda") else "float32")
    return args


def _facts(args: argparse.Namespace) -> dict[str, Any]:
    cuda = args.device.startswith("cuda")
    device = torch.cuda.get_device_name(args.device) if cuda else "cpu"
    installed = {
        name: version(name)
        for name in _PACKAGES
        if importlib.util.find_spec(name.replace("-", "_"))
    }
    return {
        "machine": machine(device=device),
        "python": platform.python_version(),
        "versions": installed,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure and print; write benchmarks/results/gpu.json after each case."""
    args = _arguments(arguments)
    facts = _facts(args)
    began = time.perf_counter()
    found: list[Row] = []
    for model, profile in product(args.models, args.profiles):
        for outputs in outputs_of(model):
            if args.outputs not in ("both", "dense" if outputs == ("dense",) else "all"):
                continue
            if time.perf_counter() > began + args.seconds:
                print(f"no time left for {model}, {profile}, {outputs}", file=sys.stderr)
                continue
            rows = measure(model, profile, outputs, args)
            save(args.results, "gpu", facts, rows)
            found += rows
            print(f"{table(rows)}\n{rows[0]['phases']}", file=sys.stderr)
            gc.collect()
            if args.device.startswith("cuda"):
                torch.cuda.empty_cache()
    print(table(found))
    for row in found:
        if "phases" in row:
            print(f"{row['model']}, {row['profile']}, {row['outputs']}: {row['phases']}")


if __name__ == "__main__":
    main()
