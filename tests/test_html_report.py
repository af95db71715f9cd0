"""Report pages load nothing, escape what comes from data, and follow the reader's theme."""

from __future__ import annotations

import re

import pytest
from html_pages import Parsed
from matplotlib.figure import Figure

from pipelines.reports.html import (
    CARD,
    INK,
    LINE,
    MUTED,
    PALETTE,
    SERIES,
    Chart,
    Facts,
    Section,
    Table,
    legend,
    new_figure,
    page,
    short,
    svg,
)

EVIL = "</title><script>alert('$x$')</script> & \"q\" $y$"


def drawn(label: str = "a") -> Figure:
    figure, axes = new_figure()
    axes.plot([0, 1, 2], [5, 3, 4], color=SERIES[0], label=label)
    axes.fill_between([0, 1, 2], [1, 1, 2], color=SERIES[1], edgecolor=CARD, label="b")
    axes.axhline(2, color=INK)
    axes.set_ylim(0, 2.5)  # cuts the line: a clip path
    legend(axes)
    return figure


def everything(word: str) -> str:
    chart = Chart(word, drawn(word), word)
    table = Table([word, "n"], [[word, 1234], ["b", None]], word)
    blocks = [Facts([(word, word)]), table, chart, Chart("other", drawn())]
    return page(word, word, [Section(word, word, blocks)], word)


def test_page_with_markup_in_every_text_shows_it_as_text() -> None:
    parsed = Parsed(everything(EVIL))
    assert not [tag for tag, _ in parsed.tags if tag in ("script", "b", "i")]
    # Page: title, h1, subtitle, footer; section 2, facts 2, table 3; chart: h3, title, legend,
    # caption.
    assert parsed.text.count(EVIL) == 4 + 2 + 2 + 3 + 4
    attributes = [dict(attributes) for _, attributes in parsed.tags]
    assert sum(a.get("aria-label") == EVIL for a in attributes) == 1
    assert not [name for a in attributes for name in a if name.startswith("on")]


def test_page_loads_nothing_and_says_so_to_the_browser() -> None:
    text = everything("plain")
    assert "://" not in text
    assert not re.search(r"@import|url\((?!#)", text)
    tags = Parsed(text).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "object", "base"}
    assert all((a.get("href") or "#").startswith("#") and "src" not in a for _, a in tags)
    assert any("default-src 'none'" in (a.get("content") or "") for _, a in tags)


def test_page_has_both_themes_and_figures_follow_them() -> None:
    text = everything("plain")
    assert len(PALETTE) == 11
    assert "color-scheme: light dark;" in text
    assert all(f"--{n}: light-dark({', '.join(both)});" in text for n, both in PALETTE.items())
    for style in re.findall(r'<(?:path|text|use)[^>]* style="([^"]*)"', text):
        left = re.sub(r"var\(--[\w-]+, #\w{6}\)", "", style)
        assert "#" not in left.replace("url(#", ""), style


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_palette_is_readable_on_paper_and_card(theme: int) -> None:
    """WCAG 2: 4.5 for text, 3 for what is drawn."""
    palette = {name: both[theme] for name, both in PALETTE.items()}

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(f * c for f, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for ground in ("paper", "card"):
        for name, colour in palette.items():
            if name in ("paper", "card", "line"):
                continue
            low, high = sorted((luminance(colour), luminance(palette[ground])))
            least = 4.5 if name in ("ink", "muted") else 3
            assert (high + 0.05) / (low + 0.05) >= least, (name, ground)


def test_svg_of_equal_figures_is_equal_and_of_others_shares_no_id() -> None:
    one, again, other = svg(drawn(), "t"), svg(drawn(), "t"), svg(drawn("other"), "other")
    assert one == again
    ids = [set(re.findall(r' id="([^"]+)"', text)) for text in (one, other)]
    assert all(ids)
    assert not ids[0] & ids[1]
    for text in (one, other):
        names = re.findall(r' id="([^"]+)"', text)
        assert len(names) == len(set(names))
        assert set(re.findall(r"url\(#([\w-]+)\)", text)) <= set(names)


def test_svg_has_a_name_scales_and_keeps_text_as_text() -> None:
    text = svg(drawn("series one"), "Speed")
    assert text.startswith('<svg viewBox="0 0 360 210" role="img" aria-label="Speed"><title>Speed<')
    assert ">series one</text>" in text
    assert "<style" not in text


def test_table_aligns_numbers_right_and_words_left() -> None:
    header = ["name", "count", "share", "mixed"]
    rows = [["1b", 12345, "12.5 %", "3"], ["x", None, "−0.1 %", "none"], ["y", 0.123456, None, 1]]
    html = str(Table(header, rows).html())
    kinds = re.findall(r'<th( class="number")? scope', html)
    assert [bool(kind) for kind in kinds] == [False, True, True, False]
    assert ">12,345<" in html
    assert ">0.1235<" in html


def test_table_without_rows_and_section_without_blocks_are_shown() -> None:
    parsed = Parsed(page("t", "", [Section("empty", blocks=[Table(["a", "b"], [])]), Section("")]))
    assert "ab" in parsed.text.replace("\n", "")


def test_blocks_show_themselves_in_a_notebook() -> None:
    for block in (Facts([(EVIL, "1")]), Table([EVIL], [[1]]), Chart("t", drawn(EVIL), "c")):
        text = block._repr_html_()
        assert "<script" not in text
        assert f"background: {MUTED}" not in text
        assert f"--card: light-dark({CARD}, " in text
        assert f"--line: light-dark({LINE}, " in text
        assert Parsed(text).text.count(EVIL) == 1


def test_section_shows_its_lead_and_blocks_in_a_notebook_but_no_heading() -> None:
    blocks = [Table(["a"], [["b"]]), Chart("one", drawn()), Chart("two", drawn("c"))]
    text = Section("heading", EVIL, blocks)._repr_html_()
    parsed = Parsed(text)
    assert parsed.text.count(EVIL) == 1
    assert "heading" not in parsed.text
    assert [name for name in ("<h3>one", "<h3>two", "<table") if name not in text] == []


def test_notebook_blocks_follow_a_dark_notebook() -> None:
    style = Table(["a"], [[1]])._repr_html_()
    dark = style[style.index('[data-jp-theme-light="false"] .packvec') :]
    assert ".vscode-dark .packvec" in dark
    assert dark.index("color-scheme: dark") < dark.index("</style>")


def test_wide_chart_is_as_much_wider_in_a_notebook() -> None:
    widths = [Chart("t", new_figure(width)[0])._repr_html_() for width in (360, 720)]
    assert [re.findall(r'class="packvec" style="max-width: (\w+)"', w) for w in widths] == [
        ["31rem"],
        ["62rem"],
    ]


def test_short_number_has_few_characters() -> None:
    values = [0, 0.123, 9.96, 99.7, 950, 999.9, 1234, 123_456, 999_950, 2.5e9, -1500]
    said = ["0", "0.12", "10", "100", "950", "1k", "1.2k", "123k", "1M", "2.5G", "-1.5k"]
    assert [short(value) for value in values] == said
