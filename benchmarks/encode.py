"""Measures the speed of encoding, compared with sentence-transformers and FlagEmbedding.

    make bench-encode
    python -m benchmarks.encode --models minilm --profiles paragraphs --rounds 5

Each system has its own process and environment; all load their models before the first measurement.
In each round, each system in turn encodes the whole list of texts once, from text to vectors in
host memory, so that disturbances of the machine affect all systems. Figures are medians over
rounds; ratios are computed for each round before the median.

A peer is measured with its defaults, and with its best compute type (bfloat16 if the CPU has AMX,
else float32) and best batch size, found by trying. A batch holds at most a quarter of the texts, so
that a short list is not padded more than a corpus would be.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch

from actors.tokens.tokenizer import TextTokenizer
from benchmarks.encode_worker import Load, request_of
from benchmarks.measure import Transformer
from benchmarks.options import some_of
from benchmarks.pipes import running
from benchmarks.report import RESULTS, Row, machine, save, table
from benchmarks.shapes import MODELS, SHAPES, model_folder, outputs_of, pooling_of
from benchmarks.texts import PROFILES, TOKENS, texts
from benchmarks.turns import SHIPPED_BATCH, Case, Worker, measure

_ROOT = Path(__file__).parents[1]
_MAX_LENGTH = 512
# Tokens of a pass: some seconds of the slowest system on two cores without AMX.
_PASS = {"minilm": 20_000, "bge-small": 10_000, "bge-base": 3_500, "bge-m3": 1_500}
# Random weights, and other arithmetic: what is no more alike than this is another computation.
_ALIKE = 0.98


@contextmanager
def _workers(case: Case, args: argparse.Namespace, folder: Path) -> Iterator[list[Worker]]:
    best = "bfloat16" if torch.cpu._is_amx_tile_supported() else "float32"
    with ExitStack() as stack:
        workers = []
        for system in args.systems:
            if system == "sentence-transformers" and len(case.outputs) > 1:
                continue  # knows dense vectors only
            python = args.flagembedding if system == "FlagEmbedding" else Path(sys.executable)
            for dtype in [best] if system == "ours" else dict.fromkeys(("float32", best)):
                load = Load(
                    system=system,
                    folder=str(folder),
                    pooling=pooling_of(case.model),
                    dtype=dtype,
                    outputs=list(case.outputs),
                    max_length=_MAX_LENGTH,
                    texts=case.texts,
                )
                pipe = stack.enter_context(running(python, "benchmarks.encode_worker", _ROOT))
                facts = pipe.ask(**request_of(load))
                workers.append(Worker(system=system, dtype=dtype, pipe=pipe, facts=facts))
        yield workers


def _case(model: str, profile: str, outputs: tuple[str, ...], args: argparse.Namespace) -> Case:
    tokens = args.scale * _PASS.get(model, 10_000)
    found = texts(profile, max(8, round(tokens / TOKENS[profile])))
    tokenizer = TextTokenizer(model_folder(model), _MAX_LENGTH)
    lengths = [int(length) for length in tokenizer.tokenize(found).lengths]
    return Case(
        model=model,
        profile=profile,
        outputs=outputs,
        texts=found,
        lengths=lengths,
        flops=Transformer.of(model_folder(model)).flops(lengths, outputs),
    )


def _cases(args: argparse.Namespace) -> Iterator[Case]:
    for model, profile in product(args.models, args.profiles):
        for outputs in outputs_of(model):
            if args.outputs in ("both", "dense" if outputs == ("dense",) else "all"):
                yield _case(model, profile, outputs, args)


def _arguments() -> argparse.Namespace:
    systems = ["ours", *SHIPPED_BATCH]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--models", type=some_of(("minilm", *SHAPES)), default=list(MODELS))
    parser.add_argument("--profiles", type=some_of(list(TOKENS)), default=list(PROFILES))
    parser.add_argument("--outputs", choices=("dense", "all", "both"), default="both")
    parser.add_argument("--systems", type=some_of(systems), default=systems)
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
    if "FlagEmbedding" in args.systems and not args.flagembedding.exists():
        parser.error(f"{args.flagembedding}: not found; `make bench-encode` makes it, or --systems")
    return args


def main() -> None:
    """Measure and print; write benchmarks/results/encode.json after each case."""
    args = _arguments()
    os.environ["HF_HUB_OFFLINE"] = "1"
    # A process that waits for its turn must not turn in circles on the others' cores.
    os.environ["OMP_WAIT_POLICY"] = "passive"
    facts: dict[str, Any] = {
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
