"""Reports as one HTML page: facts, tables and charts, light and dark; it loads nothing.

    page("Run", "of yesterday", [Section("Speed", "", [Chart("Tokens a second", figure)])])

Figures come from figures.py. All text is escaped. Sections and what is in them show
themselves in notebooks too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

from pipelines.figures import WIDTH, svg
from pipelines.html_style import (
    BLOCK_STYLE,
    CHART,
    DARK,
    FACTS,
    LIGHT,
    NOTE,
    NOTEBOOK,
    PAGE,
    PAGE_STYLE,
    TABLE,
    variables,
)

if TYPE_CHECKING:  # imported late: a driver draws once, at its end
    from jinja2 import Template
    from markupsafe import Markup
    from matplotlib.figure import Figure

_NUMBER = re.compile(r"[-+−±<>≈~]*\s?\d[\d.,:]*(\s?[%×\w/²]{0,9}){0,2}")


@dataclass(frozen=True)
class Facts:
    """Tiles of a label and a value, formatted."""

    items: Sequence[tuple[str, str]]

    def html(self) -> Markup:
        """The tiles, escaped."""
        return _fill(FACTS, items=self.items)

    def _repr_html_(self) -> str:
        return _in_notebook(self.html())


@dataclass(frozen=True)
class Table:
    """A table; columns of numbers, formatted or not, are aligned right. None is an empty cell.

    With no name in the header, it is one of names and values.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]
    caption: str = ""

    def html(self) -> Markup:
        """The table, escaped."""
        from markupsafe import Markup

        rows = [[_cell(value) for value in row] for row in self.rows]
        columns = list(zip(*rows, strict=True)) or [()] * len(self.header)
        number = Markup(' class="number"')
        kinds = [number if _is_numeric(column) else "" for column in columns]
        return _fill(
            TABLE,
            caption=self.caption,
            named=any(self.header),
            header=list(zip(self.header, kinds, strict=True)),
            rows=[list(zip(row, kinds, strict=True)) for row in rows],
        )

    def _repr_html_(self) -> str:
        return _in_notebook(self.html())


@dataclass(frozen=True)
class Chart:
    """A figure with its title, which readers hear too who do not see it, and a caption."""

    title: str
    figure: Figure
    caption: str = ""

    def html(self) -> Markup:
        """The figure as inline SVG, its texts escaped."""
        from markupsafe import Markup

        drawn = Markup(svg(self.figure, self.title))
        return _fill(CHART, title=self.title, caption=self.caption, svg=drawn)

    def _repr_html_(self) -> str:
        # As large as in a page: its text has one size, however wide it is.
        pixels = self.figure.get_figwidth() * self.figure.dpi
        return _in_notebook(self.html(), width=f"{31 * pixels / WIDTH:.4g}rem")


@dataclass(frozen=True)
class Note:
    """A sentence, such as one that says why there is nothing to show."""

    text: str

    def html(self) -> Markup:
        """It, escaped."""
        return _fill(NOTE, text=self.text)

    def _repr_html_(self) -> str:
        return _in_notebook(self.html())


Block = Facts | Table | Chart | Note


@dataclass(frozen=True)
class Section:
    """A part of a page; charts that follow each other stand side by side where there is room."""

    heading: str
    lead: str = ""
    blocks: Sequence[Block] = ()

    def _repr_html_(self) -> str:
        """Without its heading: a notebook has its own."""
        from markupsafe import Markup

        lead = [Note(self.lead).html()] if self.lead else []
        return _in_notebook(Markup("\n").join([*lead, *_blocks(self)]))


def page(title: str, subtitle: str, sections: Sequence[Section], footer: str = "") -> str:
    """A whole HTML document."""
    from markupsafe import Markup

    shown = [
        {"heading": section.heading, "lead": section.lead, "blocks": _blocks(section)}
        for section in sections
    ]
    words = {"title": title, "subtitle": subtitle, "footer": footer}
    return str(_fill(PAGE, **words, sections=shown, style=Markup(PAGE_STYLE + BLOCK_STYLE)))


def _blocks(section: Section) -> list[Markup]:
    from markupsafe import Markup

    blocks: list[Markup] = []
    for charts, group in groupby(section.blocks, lambda block: isinstance(block, Chart)):
        html = [block.html() for block in group]
        joined = Markup("\n").join(html)
        blocks += [Markup('<div class="charts">{}</div>').format(joined)] if charts else html
    return blocks


def _in_notebook(html: Markup, width: str = "60rem") -> str:
    from markupsafe import Markup

    light, dark = Markup(variables(LIGHT)), Markup(variables(DARK))
    style = Markup(BLOCK_STYLE)
    return str(_fill(NOTEBOOK, style=style, light=light, dark=dark, width=width, html=html))


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _is_numeric(column: Sequence[str]) -> bool:
    return any(column) and all(not cell or _NUMBER.fullmatch(cell) for cell in column)


@cache
def _template(source: str) -> Template:
    from jinja2 import Environment, StrictUndefined

    return Environment(autoescape=True, undefined=StrictUndefined).from_string(source)


def _fill(source: str, **values: Any) -> Markup:
    from markupsafe import Markup

    return Markup(_template(source).render(**values))
