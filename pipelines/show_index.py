"""Prints a summary of the live view of an index, and a few of its rows.

python -m pipelines.show_index out/quickstart
python -m pipelines.show_index out/quickstart --generation 3
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from actors.encoded import SCORE
from pipelines.index.parts import COMPUTED_COLUMNS
from pipelines.index.reader import Index, describe_index, open_index
from pipelines.terminal.cli import Generation, IndexUri, exit_with_one_line, new_app

_SHOWN = ("passage_id", "title", "text", "n_tokens", *COMPUTED_COLUMNS)
_OTHERS_WIDTH = 70  # terminal columns for everything except the text


def look(index: Index, rows: int, width: int) -> Table:
    """Return the first rows as a table `width` columns wide, with abbreviated vectors."""
    names = [name for name in _SHOWN if name in index.schema.names]
    found = index.scanner(names).head(rows)
    if {"title", "text"} <= set(names):  # in one column, which fits 80 columns
        names.remove("title")
    table = Table(box=box.SIMPLE)
    for name in names:
        table.add_column(name, no_wrap=True)
    text_width = max(width - _OTHERS_WIDTH, 12)
    for row in found.to_pylist():
        if row.get("title") and row.get("text"):
            row["text"] = f"{row['title']}: {row['text']}"
        table.add_row(*(_cell(name, row[name], text_width) for name in names))
    return table


def _cell(name: str, value: Any, text_width: int) -> str:
    if name == "dense":
        return f"[{value[0]:.2f}, …] × {len(value)}"
    if name == "sparse":
        return f"{len(value['indices'])} ids"
    if name == "colbert":
        return f"{len(value)} × {len(value[0]) if value else 0}"
    if name == SCORE:
        scores = value if isinstance(value, list) else [value]
        return ", ".join(f"{score:.4f}" for score in scores)
    text = " ".join(str(value).split())
    return text if len(text) <= text_width else f"{text[: text_width - 1]}…"


app = new_app()


@app.command()
def main(
    uri: IndexUri,
    rows: Annotated[int, typer.Option(help="Number of rows.", min=0)] = 5,
    generation: Generation = None,
) -> None:
    """Print a summary of an index and a few of its rows."""
    with exit_with_one_line():
        index = open_index(uri, generation=generation)
        console = Console()
        # Without markup: rich would interpret [brackets] in a path.
        console.print(f"{uri}: {describe_index(index)}", highlight=False, markup=False)
        console.print(look(index, rows, console.width))


if __name__ == "__main__":
    app()
