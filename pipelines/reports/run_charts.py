"""Draws the numbers of run_numbers.py as charts; a note replaces a chart without data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.reports.html import (
    CARD,
    INK,
    MUTED,
    SERIES,
    Chart,
    Note,
    legend,
    new_figure,
    rows_of_bars,
    short_ticks,
    write_beside,
)
from pipelines.reports.run_numbers import ActorTime, Lengths, Throughput, padded_tokens

_NO_TIMES = "The done records contain no times: {} cannot be drawn."
_NO_PASSAGES = "No passage was written: {}."
_KEPT = SERIES[5]
_TIMES = {"encode": SERIES[0], "write": SERIES[2], "upload": SERIES[1], "wait": SERIES[5]}
_ACTORS = 8
_BAR = 0.62
_PALE = 0.35
_DASHED = (0, (3, 3))


def speed_chart(speed: Throughput | None) -> Chart | Note:
    """Draw tokens per second over time."""
    if speed is None:
        return Note(_NO_TIMES.format("speed"))
    size, unit = next(
        (size, unit)
        for size, unit in ((3600, "hours"), (60, "minutes"), (1, "seconds"))
        if speed.edges[-1] >= 3 * size or size == 1
    )
    edges = speed.edges / size
    figure, axes = new_figure()
    total = speed.kept + speed.new
    if speed.resumed is not None:
        axes.stairs(
            speed.kept, edges, fill=True, color=_KEPT, alpha=_PALE, label="earlier attempts"
        )
        axes.axvline(speed.resumed / size, color=MUTED, linewidth=1, linestyle=_DASHED)
    area = axes.stairs(total, edges, baseline=speed.kept, fill=True, label="last attempt")
    area.set(color=SERIES[0], alpha=_PALE)
    first = int(np.argmax(speed.new > 0)) if speed.new.any() else len(total)
    for line, ends, colour in (
        (total[:first], edges[: first + 1], _KEPT),
        (total[first:], edges[first:], SERIES[0]),
    ):
        if len(line):
            axes.stairs(line, ends, baseline=None, color=colour, linewidth=1.4)
    before = ""
    if speed.resumed is not None:
        legend(axes)
        before = " Left of the dashed line, time without a slice in progress is left out."
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(0, max(float(total.max()), 1.0) * 1.08)
    axes.set_xlabel(unit)
    short_ticks(axes.yaxis)
    axes.locator_params(nbins=5)
    return Chart(
        "Tokens a second",
        figure,
        "Tokens encoded by all actors together. The tokens of a slice are spread evenly over its "
        f"duration.{before}",
    )


def time_chart(actors: Sequence[ActorTime]) -> Chart | Note:
    """Draw how each actor spent its time; of many actors, the sum and three of them."""
    if not actors:
        return Note(_NO_TIMES.format("where time went"))
    rows = _rows(actors)
    figure, axes = new_figure(height=90 + 26 * max(len(rows), 2))
    rows_of_bars(axes, [label for label, _ in rows])
    whole = [max(sum(a.under_way for a in some), 1e-9) for _, some in rows]
    left = np.zeros(len(rows))
    for name, colour in _TIMES.items():
        seconds = [sum(getattr(actor, name) for actor in some) for _, some in rows]
        share = 100 * np.array(seconds) / whole
        axes.barh(
            range(len(rows)), share, _BAR, left, color=colour, edgecolor=CARD, linewidth=1,
            alpha=_PALE if name == "wait" else 1, label=name,
        )  # fmt: skip
        left += share
    axes.set_xlim(0, 100)
    axes.grid(visible=False)
    axes.set_xlabel("% of the time of slices")
    legend(axes)
    return Chart(
        "Where the time went",
        figure,
        "Shares of the summed duration of slices; an actor holds several slices at once. encode: "
        "the slice used the encoder; write: its rows were assembled and written to a local file; "
        "upload: this file was copied to the index; wait: the rest, mostly for the encoder while "
        "another slice used it.",
    )


def _rows(actors: Sequence[ActorTime]) -> list[tuple[str, list[ActorTime]]]:
    if len(actors) <= _ACTORS:
        return [(f"actor {number}", [actor]) for number, actor in enumerate(actors, 1)]
    by_busy = sorted(actors, key=lambda actor: actor.busy)
    return [
        (f"all {len(actors):,}", list(actors)),
        ("busiest", by_busy[-1:]),
        ("median", [by_busy[len(by_busy) // 2]]),
        ("least busy", by_busy[:1]),
    ]


def lengths_chart(lengths: Lengths) -> Chart | Note:
    """Draw a histogram of the lengths of passages."""
    tokens = lengths.tokens
    if not len(tokens):
        return Note(_NO_PASSAGES.format("there are no lengths to show"))
    figure, axes = new_figure()
    longest = int(tokens.max())
    step = max(-(-(longest + 1) // 40), 1)
    bins = range(0, longest + step + 1, step)
    axes.hist(tokens, bins, color=SERIES[0], edgecolor=CARD, linewidth=0.6)
    median, most = (float(q) for q in np.quantile(tokens, (0.5, 0.95)))
    axes.axvline(median, color=INK, linewidth=1, linestyle=_DASHED)
    axes.set_xlim(0, longest + step)
    axes.set_xlabel("tokens in a passage")
    short_ticks(axes.yaxis)
    axes.locator_params(nbins=5)
    return Chart(
        "Lengths of passages",
        figure,
        f"Passages by number of tokens, {step:,} tokens per bar. The median (dashed) is "
        f"{median:,.0f}, 95% have at most {most:,.0f}, the longest {longest:,}. {_read(lengths)}",
    )


def padding_chart(lengths: Lengths) -> Chart | Note:
    """Draw the tokens that padded batches of the same passages would compute."""
    tokens = lengths.tokens
    if not len(tokens):
        return Note(_NO_PASSAGES.format("there is no padding to avoid"))
    packed = int(tokens.sum())
    cases = {"packed": packed}
    for batch in (32, 256):
        for by_length, order in ((False, "unsorted"), (True, "by length")):
            cases[f"{batch}, {order}"] = padded_tokens(tokens, batch, by_length=by_length)
    figure, axes = new_figure()
    rows_of_bars(axes, list(cases))
    factors = [count / max(packed, 1) for count in cases.values()]
    for row, factor in enumerate(factors):
        axes.barh(row, factor, _BAR, color=_KEPT if row else SERIES[0], alpha=_PALE if row else 1)
        write_beside(axes, f"{factor:.2f} ×", factor, row)
    axes.set_xlim(0, max(factors) * 1.2)
    axes.set_xticks([])
    return Chart(
        "Padding avoided",
        figure,
        "Tokens that padded batches of 32 and 256 passages would compute, relative to the "
        f"{packed:,} tokens of the passages. Each passage of a batch costs as much as its longest "
        f"one. By length: all passages are sorted first. {_read(lengths)}",
    )


def _read(lengths: Lengths) -> str:
    passages = f"{len(lengths.tokens):,} passages"
    if lengths.is_sample:
        return f"From {lengths.parts} of {lengths.of_parts:,} parts, {passages}."
    return f"From all {passages}."
