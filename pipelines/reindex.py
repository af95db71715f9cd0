"""Brings an index up to date with its source.

    python -m pipelines.reindex conf/wiki.yaml

    compare -> read what changed + chunk + tokenise -> encode + write -> commit -> gate -> publish

Embeds new and changed documents, deletes missing ones, and adds a generation to the live one. The
cost is proportional to the change. If nothing changed, nothing is done; a dead run is continued.
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
    """Bring the index up to date with its source; return the newest manifest.

    `permit`: who can confirm that everything is embedded again after a change of the configuration;
    by default nobody. `publishes`: make the new generation live. `engine`: executes the pipeline;
    by default the engine that `ray.engine` names.

    Raises:
        EmbedError: a subclass, with a remedy; finished slices are kept.
        GateError: the new generation is committed but not live, with the reasons.
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
    # Outside of the context above: embedding everything is a separate run with its own progress.
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
    """Ask for confirmation to embed everything again.

    Raises:
        ConfigError: the permit does not confirm it.
    """
    plan = plan_of(context.store, live)
    mine, theirs = (
        {**each, "source": {"columns": each["source"]["columns"]}, "slice": {}}
        for each in (context.request.parts, plan.request)
    )
    others = differences(mine, theirs)
    said = (
        f"everything must be embedded again: {', '.join(others[:6])} "
        f"{'differs' if len(others) == 1 else 'differ'} from the configuration of generation "
        f"{live.generation} of {context.config.index.uri}"
    )
    if permit.yes:
        return
    context.progress.stage("estimating its size")
    units, files = context.source.units(context.listing), resolve_model(config.encoder)
    estimate = estimate_run(config, files, context.source, units, speed=recall_speed(config))
    with context.progress.paused():
        if permit.ask and permit.ask(f"{estimate.to_text()}\n{said}. Continue?"):
            return
    raise ConfigError(
        f"{said}: {in_short(estimate.to_json())}.",
        "Confirm it with --yes, or set another index.uri and keep this index unchanged.",
    )


app = cli.new_app()

_EPILOG = (
    "Exit codes: 0 done, or nothing to do; 1 the run failed, the same command continues it; 2 the "
    "request is invalid, or another run is writing the index; 3 committed but not live, because "
    "the gate failed; 130 interrupted."
)


@app.command(epilog=_EPILOG)
def main(
    config: cli.ConfigFile,
    overrides: cli.Overrides = None,
    no_publish: Annotated[
        bool,
        typer.Option(
            "--no-publish",
            help="Commit the new generation without making it live; "
            "pipelines.publish_generation does that.",
        ),
    ] = False,
    dry: Annotated[
        bool,
        typer.Option("--dry-run", help="Only print how many files would be read; writes nothing."),
    ] = False,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes",
            help="Start a run above confirm_bytes without asking, and embed everything again if "
            "model, outputs or chunking have changed.",
        ),
    ] = False,
    log_format: cli.LogFormatOption = "text",
    verbose: cli.Verbose = False,
) -> None:
    """Embed the new and changed documents of CONFIG, and delete missing ones from the index."""
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
