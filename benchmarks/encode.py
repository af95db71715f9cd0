"""How fast texts become vectors, beside sentence-transformers and FlagEmbedding.

    make bench-encode
    python -m benchmarks.encode --models minilm --profiles paragraphs --rounds 5

Each system is a process of its own, in its own environment; all have loaded their model before any
is measured. In each round each encodes the whole list of texts once, from text to vectors in host
memory, one system at a time, so what disturbs the machine disturbs all of them. Figures are medians
over rounds; ratios are of one round each, then the median.

A peer is measured as it ships, and with its best compute type and batch size: bfloat16 where the
CPU has AMX, float32 elsewhere; the batch size by trying. No batch is larger than a quarter of the
texts: in a corpus none holds all lengths, and a short list must not be padded more than a long one.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.tokenizer import TextTokenizer
from benchmarks.encode_worker import Load, request_of
from benchmarks.measure import Transformer
from benchmarks.pipes import Pipe
from benchmarks.report import RESULTS, Row, machine, ratio, save, table
from benchmarks.shapes import MODELS, model_folder, outputs_of, pooling_of
from benchmarks.texts import PROFILES, TOKENS, texts

_ROOT = Path(__file__).parents[1]
_MAX_LENGTH = 512
_SHIPPED_BATCH = {"sentence-transformers": 32, "FlagEmbedding": 256}
_BEST = ", its best"
_BATCHES = (4, 8, 16, 32, 64)
# Tokens of a pass: some seconds of the slowest system on two cores without AMX.
_PASS = {"minilm": 20_000, "bge-small": 10_000, "bge-base": 3_500, "bge-m3": 1_500}
# Random weights, and other arithmetic: what is no more alike than this is another computation.
_ALIKE = 0.98


@dataclass(frozen=True, kw_only=True)
class Case:
    """What all systems encode."""

    model: str
    profile: str
    outputs: tuple[str, ...]
    texts: list[str]
    lengths: list[int]
    """Tokens of each text, cut, by our tokenizer: the same count for all systems."""


@dataclass(kw_only=True)
class Worker:
    """A running system."""

    system: str
    dtype: str
    pipe: Pipe
    facts: dict[str, Any]
    passes: dict[int, list[float]] = field(default_factory=dict)
    """By batch size: seconds, a round each."""
    peaks: list[float] = field(default_factory=list)
    """Operations a second of matmuls, a round each."""
    memory: int = 0

    def encode(self, batch_size: int, every: int = 1) -> float:
        """Seconds of one pass over the texts, or every so many-th."""
        answer = self.pipe.ask(do="encode", batch_size=batch_size, every=every)
        self.memory = answer["peak_memory"]
        return float(answer["seconds"])

    def best_batch(self, texts: int) -> int:
        """The fastest batch size over half of the texts, larger ones only while that pays."""
        best = (float("inf"), 0)
        for size in sorted({_at_most(size, texts // 2) for size in _BATCHES}):
            seconds = min(self.encode(size, every=2) for _ in range(2))
            if seconds > 1.1 * best[0]:
                break
            best = min(best, (seconds, size))
        return best[1]


def _at_most(batch_size: int, texts: int) -> int:
    return max(1, min(batch_size, -(-texts // 4)))


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A system as one row has it."""

    name: str
    worker: Worker
    batch_size: int


@contextmanager
def _workers(case: Case, args: argparse.Namespace, folder: Path) -> Iterator[list[Worker]]:
    half = torch.cpu._is_amx_tile_supported()
    with ExitStack() as stack:
        workers = []
        for system in args.systems:
            if system == "sentence-transformers" and len(case.outputs) > 1:
                continue  # knows dense vectors only
            python = args.flagembedding if system == "FlagEmbedding" else Path(sys.executable)
            best = ["bfloat16"] if half else []
            dtypes = [*best] or ["float32"] if system == "ours" else ["float32", *best]
            for dtype in dtypes:
                load = Load(
                    system=system,
                    folder=str(folder),
                    pooling=pooling_of(case.model),
                    dtype=dtype,
                    outputs=list(case.outputs),
                    max_length=_MAX_LENGTH,
                    texts=case.texts,
                )
                pipe = stack.enter_context(Pipe(python, "benchmarks.encode_worker", _ROOT))
                facts = pipe.ask(**request_of(load))
                workers.append(Worker(system=system, dtype=dtype, pipe=pipe, facts=facts))
        yield workers


def _variants(workers: Sequence[Worker], texts: int) -> list[Variant]:
    variants = []
    for worker in workers:
        worker.encode(_at_most(16, texts), every=4)  # what is slow once only
        if worker.system == "ours":
            variants.append(Variant(name="ours", worker=worker, batch_size=0))
            continue
        shipped = worker.dtype == "float32"
        last = [w for w in workers if w.system == worker.system][-1] is worker
        if shipped:
            size = _at_most(_SHIPPED_BATCH[worker.system], texts)
            variants.append(Variant(name=worker.system, worker=worker, batch_size=size))
        if last:
            size = worker.best_batch(texts)
            name = worker.system + _BEST
            variants.append(Variant(name=name, worker=worker, batch_size=size))
    return variants


def measure(case: Case, workers: Sequence[Worker], rounds: int) -> list[Row]:
    """All systems in turn, the other way round every other time."""
    variants = _variants(workers, len(case.texts))
    # Where a peer's best is what it ships with, one pass stands for both.
    passes = list(dict.fromkeys((id(v.worker), v.batch_size) for v in variants))
    by_id = {id(worker): worker for worker in workers}
    for turn in range(rounds):
        for worker, batch_size in passes[:: -1 if turn % 2 else 1]:
            seconds = by_id[worker].encode(batch_size)
            by_id[worker].passes.setdefault(batch_size, []).append(seconds)
        for worker in by_id.values():
            worker.peaks.append(worker.pipe.ask(do="peak")["flops_per_s"])
    variants = [_at_best(variant) for variant in variants]
    return [_row(case, variant, variants, rounds) for variant in variants]


def _at_best(variant: Variant) -> Variant:
    """The rounds may show what trying batch sizes did not: that the shipped one is faster."""
    if not variant.name.endswith(_BEST):
        return variant
    passes = variant.worker.passes
    return replace(
        variant, batch_size=min(passes, key=lambda size: statistics.median(passes[size]))
    )


def _row(case: Case, variant: Variant, variants: Sequence[Variant], rounds: int) -> Row:
    ours = next((v for v in variants if v.name == "ours"), None)
    worker, folder = variant.worker, model_folder(case.model)
    seconds = worker.passes[variant.batch_size]
    flops = Transformer.of(folder).flops(case.lengths, case.outputs)
    shares = [flops / s / peak for s, peak in zip(seconds, worker.peaks, strict=True)]
    return {
        "system": variant.name,
        "model": case.model,
        "profile": case.profile,
        "dtype": worker.dtype,
        "batch_size": variant.batch_size or None,
        "outputs": list(case.outputs),
        "texts": len(case.texts),
        "tokens": sum(case.lengths),
        "rounds": rounds,
        "tokens_per_s": round(sum(case.lengths) / statistics.median(seconds), 1),
        "seconds": [round(s, 4) for s in seconds],
        "ratio": round(ratio(ours.worker.passes[0], seconds), 3) if ours else None,
        "peak_flops": round(statistics.median(worker.peaks)),
        "share_of_peak": round(statistics.median(shares), 4),
        "peak_memory": worker.memory,
        "threads": worker.facts["threads"],
        "cosine": round(_alike(ours.worker, worker), 5) if ours else None,
        "versions": worker.facts["versions"],
    }


def _alike(one: Worker, other: Worker) -> float:
    """The smallest cosine of two systems' vectors of one text."""
    rows = [np.array(worker.facts["dense"]) for worker in (one, other)]
    ours, theirs = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rows)
    return float((ours * theirs).sum(axis=1).min())


def _case(model: str, profile: str, outputs: tuple[str, ...], args: argparse.Namespace) -> Case:
    tokens = args.scale * _PASS.get(model, 10_000)
    found = texts(profile, max(8, round(tokens / TOKENS[profile])))
    tokenizer = TextTokenizer(model_folder(model), _MAX_LENGTH)
    lengths = [int(length) for length in tokenizer.tokenize(found).lengths]
    return Case(model=model, profile=profile, outputs=outputs, texts=found, lengths=lengths)


def _cases(args: argparse.Namespace) -> Iterator[Case]:
    for model, profile in product(args.models, args.profiles):
        for outputs in outputs_of(model):
            if args.outputs in ("both", "dense" if outputs == ("dense",) else "all"):
                yield _case(model, profile, outputs, args)


def _arguments() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--models", type=names, default=list(MODELS))
    parser.add_argument("--profiles", type=names, default=list(PROFILES))
    parser.add_argument("--outputs", choices=("dense", "all", "both"), default="both")
    parser.add_argument("--systems", type=names, default=["ours", *_SHIPPED_BATCH])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of texts")
    parser.add_argument(
        "--flagembedding",
        type=Path,
        default=_ROOT / ".venv-flagembedding/bin/python",
        help="python of the environment of benchmarks/flagembedding.txt",
    )
    parser.add_argument("--results", type=Path, default=RESULTS / "encode.json")
    args = parser.parse_args()
    if unknown := set(args.systems) - {"ours", *_SHIPPED_BATCH}:
        parser.error(f"--systems: expected some of ours, {', '.join(_SHIPPED_BATCH)}: {unknown}")
    if "FlagEmbedding" in args.systems and not args.flagembedding.exists():
        parser.error(f"{args.flagembedding}: not found; `make bench-encode` makes it, or --systems")
    return args


def main() -> None:
    """Measure, print, write benchmarks/results/encode.json after each case."""
    args = _arguments()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    # A process that waits for its turn must not turn in circles on the others' cores.
    os.environ["OMP_WAIT_POLICY"] = "passive"
    facts = {
        "machine": machine(amx=torch.cpu._is_amx_tile_supported()),
        "python": platform.python_version(),
        "versions": {},
    }
    found: list[Row] = []
    for case in _cases(args):
        with _workers(case, args, model_folder(case.model)) as workers:
            rows = measure(case, workers, args.rounds)
        for row in rows:
            facts["versions"][row["system"].partition(",")[0]] = row.pop("versions")
            cosine = row["cosine"]
            if cosine is not None and cosine < _ALIKE:
                sys.exit(f"{row['system']} computes something else: cosine {cosine} with ours")
        save(args.results, "encode", facts, rows)
        found += rows
        print(table(rows), file=sys.stderr)
    print(table(found))


if __name__ == "__main__":
    main()
