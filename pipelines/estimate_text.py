"""An estimate as text for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.progress_text import duration

_COLUMN_GROUPS = {
    "text": "text",
    "columns": "other columns",
    "dense": "dense",
    "sparse": "sparse",
    "colbert": "colbert",
}

_BYTES = ("bytes", "kB", "MB", "GB", "TB", "PB")
_MILLIONS = ("million", "billion", "trillion")


def describe(estimate: Mapping[str, Any]) -> str:
    """`Estimate.to_json` for people: a line for each thing, `~` before what is estimated."""
    e = estimate

    def number(name: str) -> str:
        return f"{e[name]:,}" if name in e["exact"] else f"~{_rounded(e[name])}"

    about = "" if "rejects" in e["exact"] else "~"
    share = e["truncated"] / max(e["passages"], 1)
    lines = [
        ("documents", f"{number('documents')} in {e['units']:,} units, ~{e['slices']:,} slices"),
        ("passages", f"{number('passages')} ({about}{share:.1%} truncated)"),
        ("tokens", number("tokens")),
    ]
    if e["rejects"]:
        codes = (f"{about}{n:,} {code}" for code, n in sorted(e["rejects"].items()))
        lines.append(("rejects", ", ".join(codes)))
    lines.append(("output", f"~{byte_count(e['total_bytes'])}"))
    for name, words in _COLUMN_GROUPS.items():
        if name in e["bytes"]:
            lines.append((f"  {words}", f"~{byte_count(e['bytes'][name])}"))
    lines.append(("encoding", _time(e)))
    if "tokens" not in e["exact"]:
        found = f"{e['documents_sampled']:,} documents of {e['units_sampled']:,} units"
        lines.append(("sample", found))
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join([*(f"{name:<{width}}{value}" for name, value in lines), *e["notes"]])


def in_short(estimate: Mapping[str, Any]) -> str:
    """`Estimate.to_json` in a few words."""
    e = estimate
    tokens, size = f"~{_rounded(e['tokens'])} tokens", f"~{byte_count(e['total_bytes'])}"
    hours = "" if e["hours"] is None else f", {_time(e)}"
    return f"{tokens}, {size}{hours}"


def _time(e: Mapping[str, Any]) -> str:
    actors = "1 actor" if e["actors"] == 1 else f"{e['actors']:,} actors"
    if e["hours"] is None:
        return (
            f"unknown with {actors}: give --tokens-per-second of one, or run --limit 1000 first; "
            "its speed is remembered"
        )
    speed = f"{e['tokens_per_second']:,.0f} tokens/s each, {e['speed_from']}"
    return f"~{duration(e['hours'] * 3600)} with {actors} ({speed})"


def byte_count(size: float) -> str:
    """In powers of 1,000, as confirm_bytes is written: 1.23 TB, 45.6 GB, 789 MB."""
    power = 0
    while size >= 999.5 and power < len(_BYTES) - 1:
        size, power = size / 1000, power + 1
    return f"{size:,.3g} {_BYTES[power]}" if size < 999.5 else f"{size:,.0f} {_BYTES[power]}"


def _rounded(count: float) -> str:
    """Three digits: 12,300, 4.56 million."""
    count, power = float(f"{count:.3g}"), 0
    if count < 1e6:
        return f"{count:,.0f}"
    count /= 1e6
    while count >= 1000 and power < len(_MILLIONS) - 1:
        count, power = count / 1000, power + 1
    return f"{count:,g} {_MILLIONS[power]}"
