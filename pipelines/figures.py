"""Figures of reports: one style, drawn without pyplot, shown as SVG in the page's own colours.

figure, axes = new_figure()
axes.plot(seconds, rate, color=SERIES[0])
svg(figure, "Tokens a second")
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines.html_style import LIGHT

if TYPE_CHECKING:  # imported late: a driver draws once, at its end
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK = LIGHT["ink"]
MUTED = LIGHT["muted"]
LINE = LIGHT["line"]
CARD = LIGHT["card"]
"""What a chart lies on: for gaps between areas."""
SERIES = tuple(LIGHT[f"series-{n}"] for n in range(1, 7))
"""Draw with these, INK, MUTED, LINE and CARD only: they follow the page's theme."""

WIDTH, HEIGHT = 360, 210
"""Of a chart, in pixels of a small screen; a larger one shows it larger."""
_FONT = 11.5


def new_figure(width: int = WIDTH, height: int = HEIGHT) -> tuple[Figure, Axes]:
    """An empty figure in the reports' style, and its axes; no pyplot, so nothing to close."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
    figure.patch.set_alpha(0)
    axes: Axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(colors=MUTED, labelsize=_FONT, length=0, pad=5)
    axes.grid(axis="y", color=LINE, linewidth=1)
    axes.set_axisbelow(True)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(MUTED)
        label.set_fontsize(_FONT)
    return figure, axes


def legend(axes: Axes, *, beside: bool = False) -> None:
    """Names of the series, above the axes or to their right."""
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 6}
    if beside:
        place = {"loc": "upper left", "bbox_to_anchor": (1, 1), "labelspacing": 0.8}
    axes.legend(
        frameon=False, borderaxespad=0.2, borderpad=0, fontsize=_FONT, labelcolor=INK,
        handlelength=0.9, handleheight=0.9, handletextpad=0.5, columnspacing=1.2, **place,
    )  # fmt: skip


def rows_of_bars(axes: Axes, labels: Sequence[str]) -> None:
    """Prepare for one horizontal bar a label, at y = 0, 1, ..., the first one on top."""
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=LINE, linewidth=1)
    axes.set_yticks(range(len(labels)), list(labels))
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", labelcolor=INK)


def short(value: float) -> str:
    """A number in few characters: 950, 1.2k, 34M; what is below 10 with at most two digits."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return _digits(value / size) + letter
    return _digits(value)


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 99.5 else f"{value:.2g}"


def short_ticks(axis: Axis) -> None:
    """Label the ticks of an axis of numbers as `short` does."""
    axis.set_major_formatter(lambda value, _: short(value))


def svg(figure: Figure, title: str = "") -> str:
    """A figure as inline SVG in the page's colours and fonts; equal figures give equal text.

    `title` is for screen readers.
    """
    import matplotlib
    from markupsafe import escape
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        # A name from data may have two $; mathdefault is in matplotlib's own tick labels.
        if isinstance(text, Text) and "mathdefault" not in text.get_text():
            text.set_parse_math(False)
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "packvec"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    drawn = file.getvalue()
    # Without its own style sheet, which would be the whole page's, and without marks for editors.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<g/>", "", drawn, flags=re.DOTALL)
    body = body[body.index(">", body.index("<svg")) + 1 :].replace("xlink:href", "href")
    view = re.search(r'viewBox="([-\d. ]+)"', drawn)
    body = re.sub(r'(?<= style=")[^"]*', lambda found: _themed(found[0]), _own_ids(body))
    label = escape(title)
    return (
        f'<svg viewBox="{view[1] if view else ""}" role="img" aria-label="{label}">'
        f"<title>{label}</title>{body.strip()}"
    )


def _themed(style: str) -> str:
    style = re.sub(r"font-family: [^;]*;? ?", "", style)
    style = re.sub(r"font: (?:\w+ )*?([\d.]+)px [^;]*", r"font-size: \1px", style)
    for name, colour in LIGHT.items():
        style = style.replace(colour, f"var(--{name}, {colour})")
    return style


def _own_ids(body: str) -> str:
    """Ids that nothing refers to go, the others become this figure's own: pages have many."""
    own = hashlib.sha256(body.encode()).hexdigest()[:8]
    used = set(re.findall(r'(?:url\(|href=")#([\w.-]+)', body))

    def renamed(found: re.Match[str]) -> str:
        return f' id="{own}-{found[1]}"' if found[1] in used else ""

    body = re.sub(r' id="([^"]*)"', renamed, body)
    return re.sub(r'(url\(|href=")#([\w.-]+)', rf"\1#{own}-\2", body)
