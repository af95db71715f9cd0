"""Embed a corpus: documents in, a committed index of vectors out.

    python -m pipelines.embed_corpus conf/wiki.yaml

    plan -> read + chunk + tokenise (CPU tasks) -> encode + write (actor pool) -> receipts -> commit

The same command after a crash goes on where it stopped; over a committed index it does nothing.
"""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.config.loading import load_config
from pipelines.config.run import RunConfig
from pipelines.estimate.confirm import Permit, dry_run
from pipelines.index.records import Manifest
from pipelines.run.context import RunContext
from pipelines.run.engine import Engine
from pipelines.run.runner import run_next
from pipelines.run.tasks import next_embed_task
from pipelines.terminal import cli
from pipelines.terminal.progress import Progress


def embed_corpus(
    config: RunConfig,
    *,
    fresh: bool = False,
    replay_rejects: bool = False,
    permit: Permit | None = None,
    publishes: bool = True,
    verbose: bool = False,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> Manifest:
    """Run the pipeline to its commit; returns the new manifest, or the live one if all is done.

    `permit`: who may agree to a run above `confirm_bytes`; by default nobody. `publishes`: make the
    new generation live. `progress` says how it goes; without one nothing is said. `engine`: where
    it runs; by default the one that `ray.engine` names.

    Raises:
        EmbedError: one of its kinds, each with a remedy; nothing staged is ever lost.
        GateError: the new generation is committed and not live, and why.
    """
    with progress or Progress(cli.silent()) as progress:
        context = RunContext.of(
            config, progress, publishes=publishes, verbose=verbose, engine=engine
        )
        return run_next(
            context,
            lambda: next_embed_task(context, fresh=fresh, replay=replay_rejects),
            progress.already_committed,
            permit,
        )


app = cli.new_app()

_EPILOG = (
    "Exit codes: 0 done, or already committed; 1 the run failed; 2 the request cannot be started "
    "as it is; 3 committed and not live, as the gate found something; 130 interrupted (Ctrl-C, "
    "SIGTERM).\n\n"
    "Example: python -m pipelines.embed_corpus conf/debug.yaml --limit 100 "
    "--set index.uri=out/small"
)


@app.command(epilog=_EPILOG)
def main(
    config: cli.ConfigFile,
    overrides: cli.Overrides = None,
    limit: cli.Limit = None,
    fresh: cli.Fresh = False,
    replay_rejects: cli.ReplayRejects = False,
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
    log_format: cli.LogFormatOption = "text",
    verbose: cli.Verbose = False,
) -> None:
    """Embed the documents CONFIG names and commit them as an index.

    The same command again goes on where an interrupted or failed run stopped.
    """
    with cli.log_to_stderr(log_format) as log:
        progress = Progress(log)
        with cli.exit_with_one_line(log, verbose=verbose, kept=progress.kept):
            run = load_config(config, cli.with_limit(overrides, limit))
            if dry:
                typer.echo(dry_run(run, tokens_per_second, actors, log_format))
                return
            embed_corpus(
                run,
                fresh=fresh,
                replay_rejects=replay_rejects,
                permit=Permit(yes=yes, ask=cli.ask_on_terminal()),
                verbose=verbose,
                progress=progress,
            )


if __name__ == "__main__":
    app()
