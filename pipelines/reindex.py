"""Bring an index up to its source: embed what is new or changed, delete what is gone.

    python -m pipelines.reindex conf/wiki.yaml

    compare -> read what changed + chunk + tokenise -> encode + write -> commit -> gate -> publish

Adds a generation to the live one; its cost follows the change. For schedulers: over an unchanged
source it does nothing, and a run that died is gone on with.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from actors.errors import ConfigError
from actors.models.files import resolve_model
from pipelines.config.loading import load_config
from pipelines.config.run import RunConfig
from pipelines.embed_corpus import embed_corpus
from pipelines.estimate.confirm import Permit
from pipelines.estimate.estimate import estimate_run
from pipelines.estimate.speed import recall_speed
from pipelines.index.generations import read_manifest
from pipelines.index.records import Manifest
from pipelines.plan.inventory import plan_of
from pipelines.plan.request import differences
from pipelines.run.context import RunContext
from pipelines.run.engine import Engine
from pipelines.run.runner import run_next
from pipelines.run.tasks import describe_reindex, live_number, next_reindex_task
from pipelines.terminal import cli
from pipelines.terminal.progress import Progress
from pipelines.terminal.text import in_short


def reindex(
    config: RunConfig,
    *,
    permit: Permit | None = None,
    publishes: bool = True,
    verbose: bool = False,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> Manifest:
    """Make the index what its source is now; returns the manifest of the newest state.

    `permit`: who may agree to embedding everything again where the configuration has become another
    one; by default nobody. `publishes`: make the new generation live. `engine`: where it runs; by
    default the one that `ray.engine` names.

    Raises:
        EmbedError: one of its kinds, each with a remedy; nothing staged is ever lost.
        GateError: the new generation is committed and not live, and why.
    """
    permit = permit or Permit()
    with progress or Progress(cli.silent()) as progress:
        context = RunContext.of(
            config, progress, publishes=publishes, verbose=verbose, engine=engine
        )
        live = read_manifest(context.store, live_number(context.store))
        if context.request.index_fingerprint == live.index_fingerprint:
            return run_next(
                context, lambda: next_reindex_task(context), progress.nothing_to_do, permit
            )
        _confirm_everything(context, config, live, permit)
    # Not within: that is a run of its own, with its own progress.
    return embed_corpus(
        config,
        fresh=True,
        permit=replace(permit, yes=True),
        publishes=publishes,
        verbose=verbose,
        progress=Progress(progress.log),
        engine=engine,
    )


def _confirm_everything(
    context: RunContext, config: RunConfig, live: Manifest, permit: Permit
) -> None:
    """Return if everything may be embedded again.

    Raises:
        ConfigError: it may not.
    """
    plan = plan_of(context.store, live)
    mine, theirs = (
        {**each, "source": {"columns": each["source"]["columns"]}, "slice": {}}
        for each in (context.request.parts, plan.request)
    )
    others = differences(mine, theirs)
    said = (
        f"everything must be embedded again: {', '.join(others[:6])} "
        f"{'is' if len(others) == 1 else 'are'} not what generation {live.generation} of "
        f"{context.config.index.uri} was made with"
    )
    if permit.yes:
        return
    context.progress.stage("estimating its size")
    units, files = context.source.units(context.listing), resolve_model(config.encoder)
    estimate = estimate_run(config, files, context.source, units, speed=recall_speed(config))
    with context.progress.paused():
        if permit.ask and permit.ask(f"{estimate.to_text()}\n{said}. Go on?"):
            return
    raise ConfigError(
        f"{said}: {in_short(estimate.to_json())}.",
        "--yes agrees to it; another index.uri keeps this index as it is.",
    )


app = cli.new_app()

_EPILOG = (
    "Exit codes: 0 done, or nothing to do; 1 the run failed, the same command goes on with it; 2 "
    "it cannot be started as it is, or another run is writing the index; 3 committed and not live, "
    "as the gate found something; 130 interrupted."
)


@app.command(epilog=_EPILOG)
def main(
    config: cli.ConfigFile,
    overrides: cli.Overrides = None,
    no_publish: Annotated[
        bool,
        typer.Option(
            "--no-publish",
            help="Commit the new generation, and leave the live one live; "
            "pipelines.publish_generation makes it live.",
        ),
    ] = False,
    dry: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only say how many files would be read; starts and writes nothing."
        ),
    ] = False,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes",
            help="Start also what is larger than confirm_bytes, and embed everything again where "
            "model, outputs or chunking have become others.",
        ),
    ] = False,
    log_format: cli.LogFormatOption = "text",
    verbose: cli.Verbose = False,
) -> None:
    """Embed what is new or changed in the documents CONFIG names, and delete what is gone."""
    with cli.log_to_stderr(log_format) as log:
        progress = Progress(log)
        with cli.exit_with_one_line(log, verbose=verbose, kept=progress.kept):
            run = load_config(config, overrides or [])
            if dry:
                typer.echo(describe_reindex(RunContext.of(run, Progress(cli.silent()))))
                return
            reindex(
                run,
                permit=Permit(yes=yes, ask=cli.ask_on_terminal()),
                publishes=not no_publish,
                verbose=verbose,
                progress=progress,
            )


if __name__ == "__main__":
    app()
