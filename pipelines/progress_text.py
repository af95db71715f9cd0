"""A run's numbers as text for people."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

_IDLE_SECONDS = 10.0  # silence worth a word


def line(numbers: Mapping[str, Any]) -> str:
    """`Progress.numbers` for people."""
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
    """At most two units: 34 s, 12 min 5 s, 3 h 20 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def summary(report: Mapping[str, Any], uri: str) -> str:
    """The last lines of a run, from its report.json."""
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
    before = f"; {kept['tokens']:,} tokens kept from an earlier try" if kept["slices"] else ""
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
