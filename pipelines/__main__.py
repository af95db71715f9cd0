"""The `packvec` command, which contains every command as a subcommand.

    packvec embed conf/wiki.yaml          is    python -m pipelines.embed_corpus conf/wiki.yaml

The module of a command is imported only when the command runs, so that commands start quickly.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

COMMANDS = {
    "embed": ("pipelines.embed_corpus", "Embed a corpus and commit it as an index."),
    "reindex": ("pipelines.reindex", "Bring an index up to date with its source."),
    "rerank-pairs": ("pipelines.rerank_pairs", "Score pairs of queries and passages."),
    "encode-queries": ("pipelines.encode_queries", "Encode a file of queries."),
    "search": ("pipelines.search_index", "Search an index exactly."),
    "evaluate": ("pipelines.evaluate_index", "Measure an index with judged queries."),
    "show": ("pipelines.show_index", "Show the summary and some rows of an index."),
    "verify": ("pipelines.verify_index", "Check that an index is complete and undamaged."),
    "sweep": ("pipelines.sweep_index", "Remove unreferenced files and old generations."),
    "compact": ("pipelines.compact_index", "Merge small parts and drop deleted rows."),
    "publish": ("pipelines.publish_generation", "Make a generation live, or roll back to one."),
    "check-endpoint": ("pipelines.check_endpoint", "Check the configuration of an endpoint."),
    "models": ("pipelines.models", "List the known models."),
    "config": ("pipelines.config.__main__", "Print every configuration key with its meaning."),
}
"""Map from name to (module, summary). Each module has its own Typer application, `app`."""


class _Commands(TyperGroup):
    """The commands of COMMANDS; a command is imported only when it is used."""

    _listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands in the order in which a user needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; while the list of commands is written, only its name and summary."""
        if cmd_name not in COMMANDS:
            return None
        module, summary = COMMANDS[cmd_name]
        if self._listing:
            return TyperCommand(cmd_name, help=summary)
        command = typer.main.get_command(importlib.import_module(module).app)
        command.name = cmd_name
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands without importing their modules."""
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False


app = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"packvec {version('packvec')}")
        raise typer.Exit


@app.callback()
def main(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Embed a corpus once: dense, sparse and ColBERT vectors in one pass, on Ray."""


if __name__ == "__main__":
    app(prog_name="packvec")
