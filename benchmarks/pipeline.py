"""Measures the overhead of the pipeline: embed_corpus end to end against the encoder alone.

    python -m benchmarks.pipeline                      # `make bench-pipeline`
    python -m benchmarks.pipeline --passages 2000 --rounds 2

Both take turns on the same cores and passages (equal passages of a slice once). `bare` is the
encoder in its own process on existing token blocks. `end to end` reads, chunks, tokenises, encodes,
writes and uploads on a local Ray cluster: dense vectors, or all three outputs with either ColBERT
storage. Start-up is excluded in two ways: `tokens_per_s` counts from the start of the first slice
to the end of the last; `tokens_per_s_by_wall` counts the whole command minus a run over a single
document. Then simulated encoders of several speeds and 1,024 dimensions run; their `ratio` is
(tokens / speed) / seconds from the first slice to the last, the utilisation of the device.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.end_to_end import Bench, Row
from benchmarks.facts import read_result, write_result
from pipelines.cluster.ray_cluster import ray_session

_ROOT = Path(__file__).parent.parent
_ARTICLES = _ROOT / "conf/data/simplewiki-1200.parquet"
_SPEEDS = (20_000.0, 50_000.0, 100_000.0, 1_000_000.0)
_STORED = {  # name -> overrides
    "dense": ["outputs=[dense]"],
    "all, colbert as bytes": ["index.colbert_storage=bytes"],
    "all, colbert as values": ["index.colbert_storage=values"],
}
_STORED_AS = {"dense": _STORED["dense"], "all": []}
"""Configuration name -> overrides of the bare encoder, which stores nothing."""

_SAME = 0.001  # where slices are cut elsewhere, other passages are equal to one of their slice

_OTHER = {"real": "simulated", "simulated": "real"}  # a run of one keeps the other's rows


def middle(rounds: Sequence[Row]) -> Row:
    """Return the median of each figure over rounds."""
    return {key: statistics.median(row[key] for row in rounds) for key in rounds[0]}


def measure_real(bench: Bench, rounds: int) -> list[Row]:
    """Measure the bare encoder and the whole pipeline in turn, for each way of storing."""
    start = [bench.end_to_end(one=True)["wall"]]
    alone: dict[str, list[float]] = {"dense": [], "all": []}
    whole: dict[str, list[Row]] = {name: [] for name in _STORED}
    turns = [(alone, name) for name in alone] + [(whole, name) for name in whole]
    for name in alone:
        bench.encode_alone(_STORED_AS[name], 1)
    for number in range(rounds):
        for kind, name in turns[:: -1 if number % 2 else 1]:
            if kind is alone:
                alone[name].append(bench.encode_alone(_STORED_AS[name]))
                note(f"round {number + 1}: bare, {name}: {alone[name][-1]:.1f} s")
            else:
                whole[name].append(bench.end_to_end(_STORED[name]))
                note(f"round {number + 1}: end to end, {name}: {whole[name][-1]['span']:.1f} s")
        start.append(bench.end_to_end(one=True)["wall"])
    start_up = statistics.median(start[1:])  # the first one starts Ray's own workers
    tokens, tokenising = bench.tokens, bench.facts["seconds"]
    about = {
        "model": bench.config.model.name,
        "profile": "simplewiki",
        "dtype": bench.dtype,
        "tokens": tokens,
        "rounds": rounds,
    }
    rows = []
    for name, seconds in alone.items():
        of = {**about, "outputs": name}
        rate = tokens / statistics.median(seconds)
        rows.append(
            {"system": "bare encoder", **of, "tokens_per_s": round(rate), "ratio": 1.0},
        )
        rows.append(
            {
                "system": "bare encoder, tokenising before",
                **of,
                "tokens_per_s": round(tokens / (statistics.median(seconds) + tokenising)),
                "ratio": _ratio([t + tokenising for t in seconds], seconds),
            }
        )
    for name, each in whole.items():
        found, bare_seconds = middle(each), alone["dense" if name == "dense" else "all"]
        if abs(found["tokens"] / tokens - 1) > _SAME:
            sys.exit(f"end to end {found['tokens']:,} tokens were encoded, alone {tokens:,}")
        by_wall = [row["wall"] - start_up for row in each]
        rows.append(
            {
                "system": "end to end",
                **about,
                "outputs": name,
                "tokens_per_s": round(tokens / found["span"]),
                "ratio": _ratio([row["span"] for row in each], bare_seconds),
                "tokens_per_s_by_wall": round(tokens / statistics.median(by_wall)),
                "ratio_by_wall": _ratio(by_wall, bare_seconds),
                "start_up_seconds": round(start_up, 2),
                **_rounded(found),
            }
        )
    return rows


def _ratio(seconds: Sequence[float], alone: Sequence[float]) -> float:
    """Return the median over rounds of the bare encoder's seconds divided by `seconds`."""
    return round(statistics.median(a / s for s, a in zip(seconds, alone, strict=True)), 3)


def measure_simulated(
    bench: Bench, rounds: int, speeds: Sequence[float], most_seconds: float
) -> list[Row]:
    """Measure every speed with every way of storing, in turn."""
    cases = [(speed, name) for speed in speeds for name in _STORED]
    cases = [case for case in cases if bench.tokens / case[0] <= most_seconds]
    found: dict[tuple[float, str], list[Row]] = {case: [] for case in cases}
    for number in range(rounds):
        for case in cases[:: -1 if number % 2 else 1]:
            found[case].append(bench.simulate(case[0], _STORED[case[1]]))
            note(f"round {number + 1}: {case} busy {found[case][-1]['device_busy']:.3f}")
    rows = []
    for (speed, name), each in found.items():
        row = middle(each)
        rows.append(
            {
                "system": f"simulated, {speed:,.0f} tokens/s",
                "model": "1,024 dimensions",
                "profile": "simplewiki",
                "dtype": "float16",
                "outputs": name,
                "tokens": int(row["tokens"]),
                "rounds": rounds,
                "tokens_per_s": round(row["tokens"] / row["span"]),
                "ratio": round(row["device_busy"], 3),
                **_rounded(row),
            }
        )
    return rows


def _rounded(row: Row) -> Row:
    names = ("encoder_busy", "encode", "write", "upload", "span", "wall")
    found = {name: round(row[name], 3) for name in names}
    sizes = ("slices", "bytes_written", "encoder_memory", "reader_memory")
    return found | {name: int(row[name]) for name in sizes}


def table(rows: Sequence[Row]) -> str:
    """Format rows as a table for the terminal and docs/scaling.md."""
    lines = [
        "| system | outputs | tokens/s | of the bare encoder | encoder busy | write s | upload s |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [f"{row[n]:.1%}" if n in row else "" for n in ("ratio", "encoder_busy")]
        cells += [f"{row[n]:.1f}" if n in row else "" for n in ("write", "upload")]
        cells = [row["system"], row["outputs"], f"{row['tokens_per_s']:,}", *cells]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def note(text: str) -> None:
    """Print progress to standard error."""
    sys.stderr.write(f"{text}\n")


def main() -> None:
    """Measure, print, and write benchmarks/results/pipeline.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--articles", type=Path, default=_ARTICLES, help="a Parquet file or folder")
    parser.add_argument("--speeds", type=float, nargs="*", default=_SPEEDS)
    parser.add_argument("--simulated-passages", type=int, default=8_000)
    parser.add_argument("--only", choices=("real", "simulated"))
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    before = read_result("pipeline")
    kept = _OTHER.get(options.only)
    rows = [row for row in before.get("rows", ()) if _kind(row) == kept]
    facts = {kind: each for kind, each in before.get("corpora", {}).items() if kind == kept}
    with (
        tempfile.TemporaryDirectory(prefix="pipeline-") as place,
        ProcessPoolExecutor(1, get_context("spawn")) as alone,
    ):
        folder = Path(place)
        sizes = {"real": options.passages, "simulated": options.simulated_passages}
        wanted = [kind for kind in sizes if options.only in (None, kind)]
        benches = {
            kind: Bench(folder / kind, options.articles, sizes[kind], alone) for kind in wanted
        }
        with ray_session(benches[wanted[0]].config.ray):
            for kind, bench in benches.items():
                facts[kind] = described(bench.facts)
                if kind == "real":
                    rows += measure_real(bench, options.rounds)
                else:
                    rows += measure_simulated(bench, options.rounds, options.speeds, 60)
    rows.sort(key=_kind)
    write_result("pipeline", rows, corpora=facts)
    sys.stdout.write(f"{table(rows)}\n{json.dumps(facts, indent=1)}\n")


def _kind(row: Row) -> str:
    return "simulated" if row["system"].startswith("simulated") else "real"


def described(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of reading alone, and of the bytes in the object store."""
    return {
        **{name: facts[name] for name in ("passages", "tokens", "slices")},
        "tokens_per_s_of_a_reading_task": round(facts["tokens_per_s"]),
        "object_store_bytes_per_token": round(facts["bytes_per_token"], 2),
    }


if __name__ == "__main__":
    main()
