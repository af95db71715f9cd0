"""Charts of an index's content, from explore_numbers.py."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from pipelines.explore_numbers import Alignment, Topics, columns_shown
from pipelines.figures import CARD, INK, MUTED, SERIES, legend, new_figure, rows_of_bars
from pipelines.html_report import Chart

if TYPE_CHECKING:  # imported late: matplotlib is only for those who draw
    from matplotlib.axes import Axes

_BAR = 0.62
_WIDE = 720
_MARKERS = ("o", "^", "s")
_COLUMNS, _ROWS = 44, 24  # of an alignment: labels are still read
_CELL = 15


def topics_chart(topics: Topics, live: int) -> Chart:
    """Passages on a plane, coloured by topic; `live`: of so many in the index."""
    figure, axes = new_figure(_WIDE, 460)
    axes.axis("off")
    for topic, name in enumerate(topics.names):
        own_N2 = topics.xy_N2[topics.topic_N == topic]
        turn, colour = divmod(topic, len(SERIES))
        axes.plot(
            *own_N2.T, _MARKERS[turn % len(_MARKERS)], color=SERIES[colour], markersize=5.5,
            alpha=0.75, markeredgecolor=CARD, markeredgewidth=0.4,
            label=f"{_clipped(', '.join(name), 28)}  {len(own_N2):,}",
        )  # fmt: skip
    for topic, name in enumerate(topics.names):
        at = _densest(topics.xy_N2[topics.topic_N == topic])
        axes.annotate(
            _clipped(name[0], 22), (at[0], at[1]), color=INK, fontsize=12, weight="bold",
            ha="center", va="center",
            bbox={"facecolor": CARD, "alpha": 0.8, "edgecolor": "none", "boxstyle": "round,pad=.2"},
        )  # fmt: skip
    legend(axes, beside=True)
    shown = len(topics.topic_N)
    return Chart(
        f"Topics of {shown:,} passages",
        figure,
        f"{'All' if shown == live else f'A sample of the {live:,}'} passages: groups by k-means of "
        "the dense vectors, places by t-SNE. Neighbours are close to each other; how far groups "
        "are apart, and how large they look, means little. Beside a name, its passages.",
    )


def tokens_chart(weights: Mapping[str, float], passage: str, most: int) -> Chart:
    """The sparse vector of a passage, {token: weight}, heaviest first."""
    shown = dict(islice(weights.items(), most))
    figure, axes = new_figure(height=44 + 19 * max(len(shown), 2))
    rows_of_bars(axes, [_shown(token) for token in shown])
    for row, weight in enumerate(shown.values()):
        axes.barh(row, weight, _BAR, color=SERIES[0])
        axes.annotate(
            f"{weight:.2f}", (weight, row), (5, 0), textcoords="offset points", va="center",
            color=MUTED, fontsize=11.5,
        )  # fmt: skip
    axes.set_xlim(0, max([*shown.values(), 1e-9]) * 1.15)
    axes.set_xticks([])
    rest = f"the {len(shown)} heaviest of {len(weights):,}" if len(shown) < len(weights) else "all"
    return Chart(f"Sparse weights of {passage}", figure, f"Tokens and their weights: {rest}.")


def alignment_chart(alignment: Alignment, query: str, passage: str) -> Chart:
    """Similarity of the tokens of a query and of a passage; the cells that count are framed."""
    columns = columns_shown(alignment, _COLUMNS)
    rows = len(alignment.query_tokens[:_ROWS])
    shown_QP = alignment.similarity_QP[:rows, columns]
    low, high = float(shown_QP.min()), float(shown_QP.max())
    strength_QP = (shown_QP - low) / max(high - low, 1e-9)
    best_Q = np.searchsorted(columns, alignment.best_Q[:rows])
    width = 150 + _CELL * len(columns)
    figure, axes = new_figure(max(width, 360), 110 + _CELL * rows)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    x, y = np.meshgrid(np.arange(len(columns)), np.arange(rows))
    _cells(axes, x.ravel(), y.ravel(), strength_QP.ravel())
    counts = best_Q < len(columns)
    _cells(axes, best_Q[counts], np.arange(rows)[counts])
    for gap in np.flatnonzero(np.diff(columns) > 1):
        axes.axvline(gap + 0.5, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
    for row in range(rows):
        axes.annotate(
            f"{alignment.similarity_QP[row].max():.2f}", (len(columns) - 0.5, row), (5, 0),
            textcoords="offset points", va="center", color=INK, fontsize=10.5,
        )  # fmt: skip
    tokens = [_shown(alignment.passage_tokens[i]) for i in columns]
    axes.set_xticks(range(len(columns)), tokens, rotation=90, fontsize=10.5)
    axes.set_yticks(range(rows), [_shown(t) for t in alignment.query_tokens[:rows]])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    return Chart(
        f"ColBERT, {alignment.score:.4f}: “{query}” in {passage}",
        figure,
        f"Query tokens by passage tokens; the stronger, the more similar ({low:.2f} to {high:.2f})."
        " Framed: the passage's best token for each of the query. Their similarities stand at the "
        f"right, and their mean is the score.{_left_out(alignment, len(columns), rows)}",
    )


def _cells(axes: Axes, x: np.ndarray, y: np.ndarray, strength: np.ndarray | None = None) -> None:
    """Squares around x, y, filled by strength from 0 to 1; only frames where none is given."""
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgba

    half = 0.5 if strength is None else 0.46
    corners = half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    squares = np.stack([x, y], axis=1)[:, None] + corners
    found = PolyCollection(list(squares))
    if strength is None:
        found.set(facecolor="none", edgecolor=INK, linewidth=1.3)
    else:
        fills = [to_rgba(SERIES[0], 0.04 + 0.96 * value) for value in strength]
        found.set(facecolor=fills, edgecolor="none")
    axes.add_collection(found)


def _left_out(alignment: Alignment, columns: int, rows: int) -> str:
    of_passage, of_query = len(alignment.passage_tokens), len(alignment.query_tokens)
    said = ""
    if rows < of_query:
        said += f" The first {rows} of {of_query} query tokens are shown."
    if columns < of_passage:
        said += f" Of {of_passage} passage tokens {columns} are shown; dashes stand for the others."
    return said


def _densest(xy_N2: np.ndarray) -> np.ndarray:
    """The point that most others are near: a mean may lie outside its own group."""
    distances = np.linalg.norm(xy_N2[:, None] - xy_N2[None], axis=2)
    return np.asarray(xy_N2[np.argmin(np.quantile(distances, 0.5, axis=1))])


def _shown(token: str) -> str:
    return _clipped(token.strip(" ▁"), 16) or "␣"


def _clipped(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
