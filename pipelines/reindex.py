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
from actors.model_files import ModelFiles, resolve_model
from pipelines import cli
from pipelines.cli import ask_on_terminal, exit_with_one_line, log_to_stderr, silent
from pipelines.config import RunConfig, load_config
from pipelines.embed_corpus import embed_corpus
from pipelines.estimate import estimate_run
from pipelines.estimate_text import in_short
from pipelines.generations import read_chain
from pipelines.inventory import plan_of
from pipelines.listing import Listing
from pipelines.permit import Permit
from pipelines.progress import Progress
from pipelines.records import Manifest
from pipelines.reindex_task import live_number, next_task_of, outlook
from pipelines.request import Request, differences
from pipelines.run import do_next
from pipelines.source import Source
from pipelines.speed import recall_speed
from pipelines.storage import open_store
from pipelines.tasks import Task
from pipelines.work import work_of


def reindex(
    config: RunConfig,
    *,
    permit: Permit | None = None,
    publishes: bool = True,
    verbose: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Make the index what its source is now; returns the manifest of the newest state.

    `permit`: who may agree to embedding everything again where the configuration has become another
    one; by default nobody. `publishes`: make the new generation live.

    Raises:
        EmbedError: one of its kinds, each with a remedy; nothing staged is ever lost.
        GateError: the new generation is committed and not live, and why.
    """
    permit = permit or Permit()
    with progress or Progress(silent()) as progress:
        progress.stage("looking for model and documents")
        config = config.with_absolute_paths()
        files, work = resolve_model(config.encoder), work_of(config)
        work.check()
        request = work.request()
        source = Source(config.source)
        listing = source.list_files()
        store = open_store(config.index.uri, config.index.storage_options)
        live = read_chain(store, live_number(store))
        if request.index_fingerprint == live[0].index_fingerprint:

            def agree(task: Task) -> None:
                wanted = [unit for unit in task.pin()[0] if unit.wanted]
                permit.check(config, files, source, wanted, progress)

            def next_task() -> Task | Manifest:
                return next_task_of(store, request, source, listing)

            how = {"verbose": verbose, "publishes": publishes}
            manifest, anything = do_next(
                next_task, agree, config, request, listing, store, progress, **how
            )
            if not anything:
                progress.nothing_to_do(manifest.generation, store.uri)
            return manifest
        _agree_to_everything(config, request, files, source, listing, live[0], permit, progress)
    # Not within: that is a run of its own, with its own progress.
    return embed_corpus(
        config,
        fresh=True,
        permit=replace(permit, yes=True),
        publishes=publishes,
        verbose=verbose,
        progress=Progress(progress.log),
    )


def _agree_to_everything(
    config: RunConfig,
    request: Request,
    files: ModelFiles,
    source: Source,
    listing: Listing,
    live: Manifest,
    permit: Permit,
    progress: Progress,
) -> None:
    """Return if everything may be embedded again.

    Raises:
        ConfigError: it may not.
    """
    plan = plan_of(open_store(config.index.uri, config.index.storage_options), live)
    parts = (request.parts, plan.request)
    mine, theirs = (
        {**each, "source": {"columns": each["source"]["columns"]}, "slice": {}} for each in parts
    )
    others = differences(mine, theirs)
    said = (
        f"everything must be embedded again: {', '.join(others[:6])} "
        f"{'is' if len(others) == 1 else 'are'} not what generation {live.generation} of "
        f"{config.index.uri} was made with"
    )
    if permit.yes:
        return
    progress.stage("estimating its size")
    units = source.units(listing)
    estimate = estimate_run(config, files, source, units, speed=recall_speed(config))
    with progress.paused():
        if permit.ask and permit.ask(f"{estimate.to_text()}\n{said}. Go on?"):
            return
    raise ConfigError(
        f"{said}: {in_short(estimate.to_json())}.",
        "--yes agrees to it; another index.uri keeps this index as it is.",
    )


def _dry_run(config: RunConfig) -> str:
    config = config.with_absolute_paths()
    source = Source(config.source)
    request = Request.of(config, resolve_model(config.encoder))
    store = open_store(config.index.uri, config.index.storage_options)
    return outlook(store, request, source, source.list_files())


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
    with log_to_stderr(log_format) as log:
        progress = Progress(log)
        with exit_with_one_line(log, verbose=verbose, kept=progress.kept):
            run = load_config(config, overrides or [])
            if dry:
                typer.echo(_dry_run(run))
                return
            reindex(
                run,
                permit=Permit(yes=yes, ask=ask_on_terminal()),
                publishes=not no_publish,
                verbose=verbose,
                progress=progress,
            )


if __name__ == "__main__":
    app()
