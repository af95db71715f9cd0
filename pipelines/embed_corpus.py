"""Embed a corpus: documents in, a committed index of vectors out.

    python -m pipelines.embed_corpus conf/wiki.yaml

    plan -> read + chunk + tokenise (CPU tasks) -> encode + write (actor pool) -> receipts -> commit

The same command after a crash goes on where it stopped; over a committed index it does nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from actors.model_files import resolve_model
from pipelines.cli import (
    LogFormat,
    ask_on_terminal,
    exit_with_one_line,
    log_to_stderr,
    silent,
)
from pipelines.config import RunConfig, load_config
from pipelines.dry_run import dry_run
from pipelines.gate import check_gate
from pipelines.permit import Permit
from pipelines.plan import Request
from pipelines.progress import Progress
from pipelines.records import Manifest
from pipelines.run import do_next
from pipelines.slices import check_chunking
from pipelines.source import Source
from pipelines.storage import open_store
from pipelines.tasks import Task, next_task_of


def embed_corpus(
    config: RunConfig,
    *,
    fresh: bool = False,
    replay_rejects: bool = False,
    permit: Permit | None = None,
    publishes: bool = True,
    verbose: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Run the pipeline to its commit; returns the new manifest, or the live one if all is done.

    `permit`: who may agree to a run above `confirm_bytes`; by default nobody. `publishes`: make the
    new generation live. `progress` says how it goes; without one nothing is said.

    Raises:
        EmbedError: one of its kinds, each with a remedy; nothing staged is ever lost.
        GateError: the new generation is committed and not live, and why.
    """
    with progress or Progress(silent()) as progress:
        progress.stage("looking for model and documents")
        config = config.with_absolute_paths()  # a worker's current directory is another one
        files = resolve_model(config.encoder)
        check_chunking(config, files)
        check_gate(config)
        request = Request.of(config, files)
        source = Source(config.source)
        listing = source.list_files()
        store = open_store(config.index.uri, config.index.storage_options)

        def next_task() -> Task | Manifest:
            return next_task_of(store, request, source, listing, fresh=fresh, replay=replay_rejects)

        def agree(task: Task) -> None:
            if task.parent is None:  # a replay is a few documents of a run that was agreed to
                (permit or Permit()).check(config, files, source, task.pin()[0], progress)

        how = {"verbose": verbose, "publishes": publishes}
        manifest, anything = do_next(
            next_task, agree, config, request, listing, store, progress, **how
        )
        if not anything:
            progress.already_committed(manifest.generation, store.uri)
        return manifest


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_EPILOG = (
    "Exit codes: 0 done, or already committed; 1 the run failed; 2 the request cannot be started "
    "as it is; 3 committed and not live, as the gate found something; 130 interrupted (Ctrl-C, "
    "SIGTERM).\n\n"
    "Example: python -m pipelines.embed_corpus conf/debug.yaml --limit 100 "
    "--set index.uri=out/small"
)


@app.command(epilog=_EPILOG)
def main(
    config: Annotated[
        Path, typer.Argument(help="A YAML file, such as those in conf/.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set a key of CONFIG, as in slice.documents=500; the value is YAML. May be "
            "repeated. python -m pipelines.config lists every key.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Only the first N documents; the same as --set source.limit=N.", metavar="N"
        ),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="Start over beside what is committed: a new generation that replaces the live one "
            "when it is complete.",
        ),
    ] = False,
    replay_rejects: Annotated[
        bool,
        typer.Option("--replay-rejects", help="Embed again what was rejected for now."),
    ] = False,
    dry: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Start nothing; print what a run would be: units, slices, documents, passages, "
            "tokens, bytes of each output, hours.",
        ),
    ] = False,
    tokens_per_second: Annotated[
        float | None,
        typer.Option(
            help="For --dry-run: of one actor; when not given, what was measured on this machine.",
            metavar="N",
            min=1e-9,
        ),
    ] = None,
    actors: Annotated[
        int | None,
        typer.Option(help="For --dry-run: when not given, ray.actors, else 1.", metavar="N", min=1),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Start also what is larger than confirm_bytes.")
    ] = False,
    log_format: Annotated[
        LogFormat,
        typer.Option(
            help="What stderr says: text (a live line on a terminal, else a line every 10 s), or "
            "json (the same numbers as objects, one a line; errors too)."
        ),
    ] = "text",
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also Ray's own log, and stack traces of errors.")
    ] = False,
) -> None:
    """Embed the documents CONFIG names and commit them as an index.

    The same command again goes on where an interrupted or failed run stopped.
    """
    with log_to_stderr(log_format) as log:
        progress = Progress(log)
        with exit_with_one_line(log, verbose=verbose, kept=progress.kept):
            pairs = [*(overrides or []), *([f"source.limit={limit}"] if limit is not None else [])]
            run = load_config(config, pairs)
            if dry:
                typer.echo(dry_run(run, tokens_per_second, actors, log_format))
                return
            embed_corpus(
                run,
                fresh=fresh,
                replay_rejects=replay_rejects,
                permit=Permit(yes=yes, ask=ask_on_terminal()),
                verbose=verbose,
                progress=progress,
            )


if __name__ == "__main__":
    app()
