"""Formats the numbers of a run as text for people."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

_IDLE_SECONDS = 10.0  # a shorter pause is not reported


def line(numbers: Mapping[str, Any]) -> str:
    """Format `Progress.numbers` as one line."""
    n = numbers
    about = "~" * n["documents_total_estimated"]
    of = "" if n["documents_total"] is None else f" of {about}{n['documents_total']:,}"
    share = "" if n["share"] is None else f" ({n['share']:.0%})"
    done = f"{n['documents']:,}{of} documents{share}"
    if n["stage"] != "encoding":
        so_far = f"; {done} so far" if n["documents"] else ""
        return f"{n['stage']}, {duration(n['stage_seconds'])}{so_far}"
    parts = [
        done,
        None if n["eta_seconds"] is None else f"{duration(n['eta_seconds'])} left",
        f"{n['tokens_per_second']:,.0f} tokens/s",
        f"{sum(n['rejects'].values()):,} rejects",
        f"{n['passages']:,} passages",
        f"{n['actors_busy']} of {n['actors']} actors busy",
        f"nothing new for {duration(n['idle_seconds'])}" * (n["idle_seconds"] >= _IDLE_SECONDS),
    ]
    return ", ".join(filter(None, parts))


def duration(seconds: float) -> str:
    """Format a duration in at most two units: 34 s, 12 min 5 s, 3 h 20 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def summary(report: Mapping[str, Any], uri: str) -> str:
    """Format the report.json of a run as its last lines."""
    counts, this_run, kept = report["counts"], report["this_run"], report["kept"]
    rejects = ", ".join(f"{n:,} {code}" for code, n in counts["rejects"].items()) or "none"
    published = "" if report.get("published", True) else ", not published"
    names = ("encoded", "reused", "unchanged", "replaced", "deleted")
    encoded, reused, unchanged, replaced, deleted = (counts.get(name, 0) for name in names)
    compared = (
        f"{encoded:,} passages encoded, {reused:,} reused; documents: {unchanged:,} unchanged, "
        f"{replaced:,} replaced, {deleted:,} deleted\n"
    )
    if not (unchanged or deleted or reused):
        compared = ""
    before = f"; {kept['tokens']:,} tokens kept from earlier attempts" if kept["slices"] else ""
    return (
        f"committed generation {report['generation']} of {uri}{published}\n"
        f"{counts['documents']:,} documents, {counts['passages']:,} passages "
        f"({counts['truncated']:,} truncated), {counts['tokens']:,} tokens, "
        f"{report['bytes'] / 1e6:,.1f} MB, rejects: {rejects}\n"
        f"{compared}"
        f"this run: {this_run['tokens']:,} tokens in {duration(report['seconds'])}, "
        f"{report['tokens_per_second']:,.0f} tokens/s, start and commit included{before}\n"
        f"look at it: python -m pipelines.show_index {shlex.quote(uri)}"
    )


_BYTES = ("bytes", "kB", "MB", "GB", "TB", "PB")
_MILLIONS = ("million", "billion", "trillion")


def describe(estimate: Mapping[str, Any]) -> str:
    """Format `Estimate.to_json` in several lines; `~` marks an estimated number."""
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
    for name in ("text", "columns", "dense", "sparse", "colbert"):
        if name in e["bytes"]:
            words = "other columns" if name == "columns" else name
            lines.append((f"  {words}", f"~{byte_count(e['bytes'][name])}"))
    lines.append(("encoding", _time(e)))
    if "tokens" not in e["exact"]:
        found = f"{e['documents_sampled']:,} documents of {e['units_sampled']:,} units"
        lines.append(("sample", found))
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join([*(f"{name:<{width}}{value}" for name, value in lines), *e["notes"]])


def in_short(estimate: Mapping[str, Any]) -> str:
    """Format `Estimate.to_json` in a few words."""
    e = estimate
    tokens, size = f"~{_rounded(e['tokens'])} tokens", f"~{byte_count(e['total_bytes'])}"
    hours = "" if e["hours"] is None else f", {_time(e)}"
    return f"{tokens}, {size}{hours}"


def _time(e: Mapping[str, Any]) -> str:
    actors = "1 actor" if e["actors"] == 1 else f"{e['actors']:,} actors"
    if e["hours"] is None:
        return (
            f"unknown with {actors}: give --tokens-per-second for one actor, or run --limit 1000 "
            "first, whose speed is remembered"
        )
    speed = f"{e['tokens_per_second']:,.0f} tokens/s each, {e['speed_from']}"
    return f"~{duration(e['hours'] * 3600)} with {actors} ({speed})"


def moment(iso: str) -> str:
    """Format a time of a manifest in UTC, to the second."""
    return datetime.fromisoformat(iso).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def byte_count(size: float) -> str:
    """Format a size in decimal units, as in 1.23 TB, 45.6 GB, 789 MB."""
    power = 0
    while size >= 999.5 and power < len(_BYTES) - 1:
        size, power = size / 1000, power + 1
    return f"{size:,.3g} {_BYTES[power]}" if size < 999.5 else f"{size:,.0f} {_BYTES[power]}"


def _rounded(count: float) -> str:
    """Format a count with three significant digits, as in 12,300 or 4.56 million."""
    count, power = float(f"{count:.3g}"), 0
    if count < 1e6:
        return f"{count:,.0f}"
    count /= 1e6
    while count >= 1000 and power < len(_MILLIONS) - 1:
        count, power = count / 1000, power + 1
    return f"{count:,g} {_MILLIONS[power]}"
