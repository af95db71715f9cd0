"""Options that commands which start a run have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli import LogFormat

ConfigFile = Annotated[
    Path, typer.Argument(help="A YAML file, such as those in conf/.", show_default=False)
]
Limit = Annotated[
    int | None,
    typer.Option(help="Only the first N documents; the same as --set source.limit=N.", metavar="N"),
]
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh",
        help="Start over beside what is committed: a new generation that replaces the live one "
        "when it is complete.",
    ),
]
LogFormatOption = Annotated[
    LogFormat,
    typer.Option(
        help="What stderr says: text (a live line on a terminal, else a line every 10 s), or "
        "json (the same numbers as objects, one a line; errors too)."
    ),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Also Ray's own log, and stack traces of errors.")
]


def with_limit(overrides: list[str] | None, limit: int | None) -> list[str]:
    """--set's values, and --limit as one of them."""
    return [*(overrides or []), *([f"source.limit={limit}"] if limit is not None else [])]
