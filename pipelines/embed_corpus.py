"""Embeds a corpus and commits the vectors as an index.

    python -m pipelines.embed_corpus conf/wiki.yaml

    plan -> read + chunk + tokenise (CPU tasks) -> encode + write (actors) -> done records -> commit

The same command continues a run that was interrupted; over a committed index it does nothing.
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
    """Run the pipeline to its commit. Return the new manifest, or the live one if all is done.

    `permit`: who can confirm a run above `confirm_bytes`; by default nobody. `publishes`: make the
    new generation live. `progress`: reports the run; by default nothing does. `engine`: executes
    the pipeline; by default the engine that `ray.engine` names.

    Raises:
        EmbedError: a subclass, with a remedy; finished slices are kept.
        GateError: the new generation is committed but not live, with the reasons.
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
    "Exit codes: 0 done, or already committed; 1 the run failed; 2 the request is invalid, or "
    "another run is writing the index; 3 committed but not live, because the gate failed; 130 "
    "interrupted (Ctrl-C, SIGTERM).\n\n"
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
            help="Only estimate the run: units, slices, documents, passages, tokens, bytes of each "
            "output, hours.",
        ),
    ] = False,
    tokens_per_second: Annotated[
        float | None,
        typer.Option(
            help="For --dry-run: speed of one actor; by default the one measured on this machine.",
            metavar="N",
            min=1e-9,
        ),
    ] = None,
    actors: Annotated[
        int | None,
        typer.Option(help="For --dry-run: actors; default: ray.actors or 1.", metavar="N", min=1),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Start a run above confirm_bytes without asking.")
    ] = False,
    log_format: cli.LogFormatOption = "text",
    verbose: cli.Verbose = False,
) -> None:
    """Embed the documents of CONFIG and commit them as an index.

    The same command continues a run that was interrupted or failed.
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
