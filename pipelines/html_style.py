"""How report pages look: palette, style sheet and template; nothing in them loads anything."""

from __future__ import annotations

# Names are CSS variables; the light colours are also what figures are drawn with.
LIGHT = {
    "paper": "#fbfaf8",
    "card": "#ffffff",
    "ink": "#22262b",
    "muted": "#696e75",
    "line": "#e3e1db",
    "series-1": "#2f6f9f",
    "series-2": "#c46f3b",
    "series-3": "#4a8a5e",
    "series-4": "#8762a6",
    "series-5": "#a3851d",
    "series-6": "#7d858c",
}
DARK = {
    "paper": "#15171a",
    "card": "#1c1f23",
    "ink": "#e7e5e0",
    "muted": "#9ba1a8",
    "line": "#30343a",
    "series-1": "#78aedb",
    "series-2": "#e09b70",
    "series-3": "#81bf95",
    "series-4": "#bb9cd5",
    "series-5": "#d4bf62",
    "series-6": "#a1a8af",
}


def variables(colours: dict[str, str]) -> str:
    """CSS variables of a palette."""
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


PAGE_STYLE = f"""
:root {{ color-scheme: light dark; {variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {variables(DARK)} }} }}
* {{ box-sizing: border-box; }}
html {{ -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }}
body {{
  margin: 0; padding: 2.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}}
main {{ max-width: 60rem; margin: 0 auto; }}
h1, h2, p, dd, figcaption {{ overflow-wrap: anywhere; }}
h1 {{ font-size: 1.7rem; line-height: 1.25; font-weight: 600; margin: 0; letter-spacing: -.01em; }}
h2 {{ font-size: 1.1rem; line-height: 1.3; font-weight: 600; margin: 0 0 .75rem; }}
section {{ margin-top: 2.75rem; }}
.subtitle {{ color: var(--muted); margin: .35rem 0 0; }}
.lead {{ max-width: 42rem; margin: 0 0 1rem; white-space: pre-line; }}
footer {{ margin-top: 3rem; color: var(--muted); font-size: .8rem; }}
@media (max-width: 30rem) {{
  body {{ padding: 1.5rem 1rem 3rem; }}
  h1 {{ font-size: 1.4rem; }}
}}
@media print {{ body {{ padding: 0; }} figure {{ break-inside: avoid; }} }}
"""

BLOCK_STYLE = """
.facts {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 8.5rem), 1fr));
  gap: 1.1rem 1.25rem; margin: 0 0 1.25rem; padding: 1.1rem 0;
  border-top: 1px solid var(--line); border-bottom: 1px solid var(--line);
}
.facts dt { color: var(--muted); font-size: .8rem; line-height: 1.3; }
.facts dd {
  margin: .1rem 0 0; font-size: 1.2rem; line-height: 1.35; font-variant-numeric: tabular-nums;
}
.charts {
  display: grid; gap: 1.25rem; margin: 0 0 1.25rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 25rem), 1fr));
}
figure {
  margin: 0; padding: .9rem .75rem .8rem; background: var(--card); min-width: 0;
  border: 1px solid var(--line); border-radius: .5rem;
}
figure h3 { font-size: .95rem; line-height: 1.35; font-weight: 600; margin: 0 0 .5rem; }
figcaption { color: var(--muted); font-size: .8rem; line-height: 1.45; margin-top: .5rem; }
svg { display: block; width: 100%; height: auto; font-family: inherit; stroke-linejoin: round; }
.note { color: var(--muted); font-size: .9rem; max-width: 42rem; margin: 0 0 1.25rem; }
.table { overflow-x: auto; margin: 0 0 1.25rem; }
table { border-collapse: collapse; font-size: .9rem; line-height: 1.4; }
.caption { color: var(--muted); font-size: .8rem; line-height: 1.45; max-width: 42rem; }
.caption { margin: -.75rem 0 1.25rem; }
th, td {
  padding: .4rem 1.4rem .4rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line);
}
th:last-child, td:last-child { padding-right: .25rem; }
th { color: var(--muted); font-weight: 500; font-size: .8rem; vertical-align: bottom; }
td { max-width: 36rem; overflow-wrap: break-word; }
.pairs tr:first-child td { border-top: 1px solid var(--line); }
.pairs td:first-child { color: var(--muted); }
.pairs td { overflow-wrap: anywhere; min-width: 5.5rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
"""

# The policy says it to the browser too: nothing is loaded, no script runs.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<main>
<header><h1>{{ title }}</h1>{% if subtitle %}<p class="subtitle">{{ subtitle }}</p>{% endif %}
</header>
{% for section in sections %}<section>
{% if section.heading %}<h2>{{ section.heading }}</h2>{% endif %}
{% if section.lead %}<p class="lead">{{ section.lead }}</p>{% endif %}
{% for block in section.blocks %}{{ block }}
{% endfor %}</section>
{% endfor %}{% if footer %}<footer>{{ footer }}</footer>{% endif %}
</main>
</body>
</html>
"""

FACTS = """<dl class="facts">{% for label, value in items %}
<div><dt>{{ label }}</dt><dd>{{ value }}</dd></div>{% endfor %}
</dl>"""

TABLE = """<div class="table"><table{% if not named %} class="pairs"{% endif %}>
{% if named %}<thead><tr>{% for name, kind in header %}
<th{{ kind }} scope="col">{{ name }}</th>{% endfor %}
</tr></thead>
{% endif %}<tbody>{% for row in rows %}
<tr>{% for cell, kind in row %}<td{{ kind }}>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>{% if caption %}
<p class="caption">{{ caption }}</p>{% endif %}"""

NOTE = """<p class="note">{{ text }}</p>"""

CHART = """<figure><h3>{{ title }}</h3>
{{ svg }}{% if caption %}<figcaption>{{ caption }}</figcaption>{% endif %}</figure>"""

# JupyterLab, pages made from notebooks and VS Code say which theme they have; light elsewhere, with
# its own background.
NOTEBOOK = """<style>
.packvec { {{ light }} background: var(--card); color: var(--ink);
  padding: 1rem; font-family: system-ui, sans-serif; }
[data-jp-theme-light="false"] .packvec, .vscode-dark .packvec { {{ dark }} }
@scope (.packvec) { {{ style }} }
</style>
<div class="packvec" style="max-width: {{ width }}">{{ html }}</div>"""
