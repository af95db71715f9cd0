"""Draw the charts of an evaluation."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

import numpy as np

from pipelines.evaluation.measures import MEASURES, Comparison
from pipelines.evaluation.results import Evaluation, ModeResult, in_words
from pipelines.reports.html import INK, MUTED, SERIES, Chart, new_figure, rows_of_bars, short_ticks

_MOST_BARS = 360  # a screen cannot show more sorted queries
_ROW_HEIGHT = 24
_RANKS, _UP_TO = ("1", "2-3", "4-10", "11-100", "101+", "none"), (1, 3, 10, 100)


def measure_chart(evaluation: Evaluation, measure: str) -> Chart:
    """Draw the mean and confidence interval of every mode."""
    modes = evaluation.modes
    figure, axes = new_figure(height=50 + _ROW_HEIGHT * len(modes))
    rows_of_bars(axes, [f"{mode.name}  {mode.measures[measure].mean:.3f}" for mode in modes])
    for row, mode in enumerate(modes):
        of = mode.measures[measure]
        colour = MUTED if mode.name == evaluation.baseline else SERIES[0]
        axes.plot([of.low, of.high], [row, row], color=colour, linewidth=2)
        axes.plot([of.mean], [row], "o", color=colour, markersize=7)
    return Chart(measure, figure)


def gains_chart(evaluation: Evaluation, mode: ModeResult) -> Chart:
    """Draw the difference between a mode and the baseline by the first measure, sorted by query."""
    return changes_chart(
        f"{mode.name} minus {evaluation.baseline}",
        differences(evaluation, mode),
        mode.against_baseline[MEASURES[0]],
    )


def changes_chart(title: str, changes: np.ndarray, of: Comparison) -> Chart:
    """Draw each query's change in the first measure, sorted. `of`: the comparison of the means."""
    gains = np.sort(changes)[::-1]
    places = np.linspace(0, len(gains) - 1, min(len(gains), _MOST_BARS)).round().astype(int)
    figure, axes = new_figure()
    x = np.append(places, len(gains))
    for sign, colour in ((1, SERIES[2]), (-1, SERIES[1])):
        side = np.maximum(sign * gains[places], 0) * sign
        axes.fill_between(x, np.append(side, side[-1:]), step="post", color=colour, linewidth=0)
    axes.axhline(0, color=MUTED, linewidth=1)
    axes.set_xlim(0, len(gains))
    axes.set_ylim(-1.05, 1.05)
    axes.set_ylabel(MEASURES[0])
    axes.set_xlabel("queries, sorted")
    short_ticks(axes.xaxis)
    return Chart(
        title,
        figure,
        f"{of.wins:,} queries better, {of.losses:,} worse, {of.ties:,} the same; "
        f"{of.difference:+.3f} on average, p {in_words(of.p_holm)}.",
    )


def lengths_chart(mode: ModeResult, lengths: Sequence[int | None]) -> Chart | None:
    """Draw the lengths of relevant documents, grouped by the rank at which a mode found them.

    `lengths`: tokens of each query's document, None if unknown. Without any, there is no chart.
    """
    groups: dict[str, list[int]] = {name: [] for name in _RANKS}
    for first, n in zip(mode.first_relevant, lengths, strict=True):
        if n is not None:
            groups[_RANKS[bisect_left(_UP_TO, first[0]) if first else -1]].append(n)
    groups = {name: inside for name, inside in groups.items() if inside}
    if not groups:
        return None
    figure, axes = new_figure()
    for x, values in enumerate(groups.values()):
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        axes.plot([x, x], [low, high], color=SERIES[0], linewidth=6, solid_capstyle="butt")
        axes.plot([x], [middle], "o", color=INK, markersize=5)
    labels = [f"{name}\n{len(values):,}" for name, values in groups.items()]
    axes.set_xticks(range(len(groups)), labels)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("tokens")
    short_ticks(axes.yaxis)
    return Chart(mode.name, figure)


def differences(evaluation: Evaluation, mode: ModeResult) -> np.ndarray:
    """Return float64 [queries]: the first measure of a mode minus that of the baseline."""
    measure = MEASURES[0]
    baseline = evaluation.mode(evaluation.baseline)
    return np.subtract(mode.per_query[measure], baseline.per_query[measure], dtype=np.float64)


def lengths_of_relevant(
    mode: ModeResult,
    query_ids: Sequence[str],
    qrels: Mapping[str, Mapping[str, int]],
    lengths: Mapping[str, int],
) -> list[int | None]:
    """Return the length of each query's first relevant document, in tokens; None if unknown.

    If no relevant document was found, it is the length of the shortest relevant one.
    """
    of: list[int | None] = []
    for query, first in zip(query_ids, mode.first_relevant, strict=True):
        relevant = [doc for doc, rel in qrels.get(query, {}).items() if rel > 0]
        known = [lengths[doc] for doc in relevant if doc in lengths]
        of.append(lengths.get(first[1]) if first else min(known, default=None))
    return of
