"""Charts of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipelines.evaluation.measures import MEASURES, Comparison
from pipelines.evaluation.results import Evaluation, ModeResult, in_words
from pipelines.reports.html import INK, MUTED, SERIES, Chart, new_figure, rows_of_bars, short_ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_MOST_BARS = 360  # of sorted queries a screen shows no more
_ROW_HEIGHT = 24
_RANKS = ((1, 1), (2, 3), (4, 10), (11, 100), (101, None))


def measure_chart(evaluation: Evaluation, measure: str) -> Chart:
    """Every mode's mean and interval."""
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
    """Each query's difference from the baseline by the first measure, sorted."""
    return changes_chart(
        f"{mode.name} less {evaluation.baseline}",
        differences(evaluation, mode),
        mode.against_baseline[MEASURES[0]],
    )


def changes_chart(title: str, changes: np.ndarray, of: Comparison) -> Chart:
    """What each query gained or lost by the first measure, sorted; `of`: the same in the mean."""
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
        f"{of.difference:+.3f} in the mean, p {in_words(of.p_holm)}.",
    )


def lengths_chart(mode: ModeResult, lengths: Sequence[int | None]) -> Chart | None:
    """How long the relevant documents are that a mode found early, late and not at all.

    `lengths`: of each query's, in tokens; None where it is not known. No chart without any.
    """
    groups: list[tuple[str, list[int]]] = []
    ranks = [None if first is None else first[0] for first in mode.first_relevant]
    pairs = [(rank, n) for rank, n in zip(ranks, lengths, strict=True) if n is not None]
    for low, high in _RANKS:
        name = f"{low}" if low == high else f"{low}-{high}" if high else f"{low}+"
        inside = [n for rank, n in pairs if rank and low <= rank and (not high or rank <= high)]
        groups.append((name, inside))
    groups.append(("none", [n for rank, n in pairs if rank is None]))
    groups = [group for group in groups if group[1]]
    return Chart(mode.name, _quartiles(groups)) if groups else None


def differences(evaluation: Evaluation, mode: ModeResult) -> np.ndarray:
    """float64[queries]: a mode's first measure less the baseline's."""
    measure = MEASURES[0]
    baseline = evaluation.mode(evaluation.baseline)
    return np.subtract(mode.per_query[measure], baseline.per_query[measure], dtype=np.float64)


def lengths_of_relevant(
    mode: ModeResult,
    query_ids: Sequence[str],
    qrels: Mapping[str, Mapping[str, int]],
    lengths: Mapping[str, int],
) -> list[int | None]:
    """Length of each query's first relevant document; where none was found, of the shortest that
    should have been.
    """
    of: list[int | None] = []
    for query, first in zip(query_ids, mode.first_relevant, strict=True):
        relevant = [doc for doc, rel in qrels.get(query, {}).items() if rel > 0]
        known = [lengths[doc] for doc in relevant if doc in lengths]
        of.append(lengths.get(first[1]) if first else min(known, default=None))
    return of


def _quartiles(groups: Sequence[tuple[str, Sequence[int]]]) -> Figure:
    figure, axes = new_figure()
    for x, (_, values) in enumerate(groups):
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        axes.plot([x, x], [low, high], color=SERIES[0], linewidth=6, solid_capstyle="butt")
        axes.plot([x], [middle], "o", color=INK, markersize=5)
    axes.set_xticks(range(len(groups)), [f"{name}\n{len(values):,}" for name, values in groups])
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("tokens")
    short_ticks(axes.yaxis)
    return figure
