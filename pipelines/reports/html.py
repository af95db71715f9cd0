"""Builds a report as one HTML page of facts, tables and charts, with a light and a dark theme.

    figure, axes = new_figure()
    axes.plot(seconds, rate, color=SERIES[0])
    page("Run", "of yesterday", [Section("Speed", "", [Chart("Tokens a second", figure)])])

The page loads nothing, and all text is escaped. Notebooks display sections and their blocks too.
page.css contains the style and the palette, page.html the markup.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


_HERE = Path(__file__).parent
_CSS = (_HERE / "page.css").read_text(encoding="utf-8")

PALETTE = {
    name: (light, dark)
    for name, light, dark in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", _CSS)
}
"""Map from CSS variable to its light and its dark colour."""

INK, MUTED, LINE, CARD = (PALETTE[name][0] for name in ("ink", "muted", "line", "card"))
"""Colours of text, secondary text, lines, and the background of a chart."""
SERIES = tuple(PALETTE[f"series-{n}"][0] for n in range(1, 7))
"""Colours of data series. Charts use only SERIES, INK, MUTED, LINE and CARD, which are themed."""

WIDTH, HEIGHT = 360, 210
"""Size of a chart in pixels of a small screen; it is scaled up on a larger one."""
FONT = 11.5
"""Size of the text in a chart, in the same pixels."""

_VARIABLES = {light: f"var(--{name}, {light})" for name, (light, _) in PALETTE.items()}
_NUMBER = re.compile(r"[-+−±<>≈~]*\s?\d[\d.,:]*(\s?[%×\w/²]{0,9}){0,2}")


class _Shown:
    """A piece of a page that notebooks can display too."""

    @property
    def _width(self) -> str:
        """The largest width in a notebook."""
        return "60rem"

    def html(self) -> Markup:
        """Return the markup, with all text escaped."""
        return _fill(type(self).__name__.lower(), self)

    def _repr_html_(self) -> str:
        return str(_fill("notebook", self.html(), self._width, _CSS))


@dataclass(frozen=True)
class Facts(_Shown):
    """Tiles of a label and a formatted value."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table(_Shown):
    """A table, in which columns of numbers are aligned right and None is an empty cell.

    Numbers may be formatted strings. A header of empty names makes a table of names and values.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]
    caption: str = ""

    def html(self) -> Markup:
        """Return the table with all text escaped."""
        rows = [[_cell(value) for value in row] for row in self.rows]
        columns = list(zip(*rows, strict=True)) or [()] * len(self.header)
        is_number = [_is_numeric(column) for column in columns]
        return _fill("table", self, rows, is_number)


@dataclass(frozen=True)
class Chart(_Shown):
    """A figure with a caption and a title, which screen readers read too."""

    title: str
    figure: Figure
    caption: str = ""

    def html(self) -> Markup:
        """Return the figure as inline SVG with all text escaped."""
        return _fill("chart", self, svg(self.figure, self.title))

    @property
    def _width(self) -> str:
        # Scaled as in a page, so that the text has the same size for every width of the figure.
        return f"{31 * self.figure.get_figwidth() * self.figure.dpi / WIDTH:.4g}rem"


@dataclass(frozen=True)
class Note(_Shown):
    """A sentence, such as the reason why a chart is missing."""

    text: str


Block = Facts | Table | Chart | Note


@dataclass(frozen=True)
class Section(_Shown):
    """A section of a page; consecutive charts are placed side by side if there is room.

    A notebook shows a section without its heading.
    """

    heading: str
    lead: str = ""
    blocks: Sequence[Block] = ()


def page(title: str, subtitle: str, sections: Sequence[Section], footer: str = "") -> str:
    """Return a complete HTML document."""
    return str(_fill("page", title, subtitle, sections, footer, _CSS))


def new_figure(width: int = WIDTH, height: int = HEIGHT) -> tuple[Figure, Axes]:
    """Return an empty figure in the style of reports, and its axes; need not be closed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
    figure.patch.set_alpha(0)
    axes: Axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(colors=MUTED, labelsize=FONT, length=0, pad=5)
    axes.grid(axis="y", color=LINE, linewidth=1)
    axes.set_axisbelow(True)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=MUTED, fontsize=FONT)
    return figure, axes


def legend(axes: Axes, *, beside: bool = False) -> None:
    """Add the names of the series, above the axes or to their right."""
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 6}
    if beside:
        place = {"loc": "upper left", "bbox_to_anchor": (1, 1), "labelspacing": 0.8}
    axes.legend(
        frameon=False, borderaxespad=0.2, borderpad=0, fontsize=FONT, labelcolor=INK,
        handlelength=0.9, handleheight=0.9, handletextpad=0.5, columnspacing=1.2, **place,
    )  # fmt: skip


def rows_of_bars(axes: Axes, labels: Sequence[str]) -> None:
    """Prepare the axes for one horizontal bar per label, at y = 0, 1, ... from the top."""
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=LINE, linewidth=1)
    axes.set_yticks(range(len(labels)), list(labels))
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", labelcolor=INK)


def write_beside(axes: Axes, text: str, x: float, y: float, colour: str = INK) -> None:
    """Write a text to the right of a point."""
    axes.annotate(
        text, (x, y), (5, 0), textcoords="offset points", va="center", color=colour, fontsize=FONT
    )


def short(value: float) -> str:
    """Format a number in few characters, as in 950, 1.2k, 34M; below 100 with two digits."""
    sizes = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    size, letter = next((each for each in sizes if abs(value) >= 0.9995 * each[0]), (1, ""))
    value /= size
    return (f"{value:.0f}" if abs(value) >= 99.5 else f"{value:.2g}") + letter


def short_ticks(axis: Axis) -> None:
    """Label the ticks of an axis of numbers as `short` does."""
    axis.set_major_formatter(lambda value, _: short(value))


def svg(figure: Figure, title: str = "") -> Markup:
    """Return a figure as inline SVG in the page's colours and fonts; deterministic.

    `title` is read by screen readers, and makes the ids of figures on one page differ.
    """
    import matplotlib
    from markupsafe import Markup
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        # Data may contain two $, which is no formula; matplotlib's tick labels use mathdefault.
        if isinstance(text, Text) and "mathdefault" not in text.get_text():
            text.set_parse_math(False)
    file = io.StringIO()
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": title}
    settings["font.sans-serif"] = ["DejaVu Sans"]  # one short name; page.css sets the real font
    with matplotlib.rc_context(settings):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    # Drop the style sheet, which would apply to the whole page, and marks for editors.
    body = file.getvalue().partition("</defs>")[2]
    body = re.sub(r'\s*<g/>| id="[\w.]+_\d{1,6}"', "", body)
    body = re.sub(r'(?<= style=")[^"]*', lambda found: _themed(found[0]), body)
    width, height = 72 * figure.get_size_inches()
    head = Markup('<svg viewBox="0 0 {0:g} {1:g}" role="img" aria-label="{2}"><title>{2}</title>')
    return head.format(width, height, title) + Markup(body.strip())


def _themed(style: str) -> str:
    return re.sub(r"#\w{6}", lambda colour: _VARIABLES.get(colour[0], colour[0]), style)


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _is_numeric(column: Sequence[str]) -> bool:
    return any(column) and all(not cell or _NUMBER.fullmatch(cell) for cell in column)


def _fill(macro: str, *values: Any) -> Markup:
    """Call a macro of page.html, which escapes its values."""
    filled: Markup = getattr(_macros(), macro)(*values)
    return filled


@cache
def _macros() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string((_HERE / "page.html").read_text(encoding="utf-8")).module
