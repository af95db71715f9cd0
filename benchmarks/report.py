"""Keeps the rows of a benchmark in benchmarks/results/<name>.json and prints them as a table.

Needs only the standard library.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_KEY = ("system", "model", "profile", "outputs")

Row = dict[str, Any]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the speed-up of ours: the ratio of seconds in each round, then the median."""
    return statistics.median([t / o for o, t in zip(ours, theirs, strict=True)])


def figures(
    seconds: Sequence[float],
    *,
    ours: Sequence[float] | None,
    peaks: Sequence[float],
    tokens: int,
    flops: int,
) -> Row:
    """Return a row's figures from the seconds of each round; `ours` and `peaks` likewise."""
    shares = [flops / s / peak for s, peak in zip(seconds, peaks, strict=True)]
    return {
        "rounds": len(seconds),
        "seconds": [round(s, 4) for s in seconds],
        "tokens_per_s": round(tokens / statistics.median(seconds), 1),
        "ratio": None if ours is None else round(ratio(ours, seconds), 3),
        "peak_flops": round(statistics.median(peaks)),
        "share_of_peak": round(statistics.median(shares), 4),
    }


def machine(**facts: Any) -> dict[str, Any]:
    """Describe the machine of the measurement."""
    processor = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
    return {"cpus": len(os.sched_getaffinity(0)), "processor": processor, **facts}


def save(path: Path, name: str, facts: dict[str, Any], rows: Sequence[Row]) -> None:
    """Put rows into a results file; each replaces an earlier row with the same key.

    `facts`: machine and versions. Rows of another machine or of other versions are dropped, because
    their figures are not comparable.
    """
    facts = json.loads(json.dumps(facts))
    kept: dict[str, Row] = {}
    if path.exists():
        before = json.loads(path.read_text())
        if all(before.get(key) == value for key, value in facts.items()):
            kept = {_key(row): row for row in before["rows"]}
    kept |= {_key(row): row for row in rows}
    date = datetime.now(UTC).date().isoformat()
    result = {"benchmark": name, "date": date, **facts, "rows": list(kept.values())}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(path)


def write(name: str, packages: Sequence[str], rows: Sequence[Row], **facts: Any) -> None:
    """Write benchmarks/results/<name>.json over older results; `facts`: of the machine."""
    result = {
        "benchmark": name,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(**facts),
        "versions": {package: version(package) for package in packages},
        "rows": list(rows),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def _key(row: Row) -> str:
    return json.dumps([row[name] for name in _KEY])


def table(rows: Sequence[Row]) -> str:
    """Format rows as a table for the terminal and docs/benchmarks.md."""
    lines = [
        "| model | profile | outputs | system | dtype | tokens/s | ours is | of peak | memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        outputs = "dense" if row["outputs"] == ["dense"] else "all three"
        faster = "" if row["ratio"] is None else f"{row['ratio']:.2f} x"
        lines.append(
            f"| {row['model']} | {row['profile']} | {outputs} | {row['system']} | {row['dtype']} | "
            f"{row['tokens_per_s']:,.0f} | {faster} | {row['share_of_peak']:.0%} | "
            f"{row['peak_memory'] / 1e9:.1f} GB |"
        )
    return "\n".join(lines)
