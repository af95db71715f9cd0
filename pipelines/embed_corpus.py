"""Embed a corpus: documents in, a committed index of vectors out.

    python -m pipelines.embed_corpus conf/wiki.yaml

    plan -> read + chunk + tokenise (CPU tasks) -> encode + write (actor pool) -> receipts -> commit

The same command after a crash goes on where it stopped; over a committed index it does nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pyarrow as pa
import ray.data
import typer
from rich.console import Console

from actors.errors import IndexStateError
from actors.model_files import resolve_model
from pipelines.cli import exit_with_one_line
from pipelines.cluster import pool_for, ray_session, refuse_local_index
from pipelines.commit import commit, finish
from pipelines.config import RunConfig, load_config
from pipelines.encode_slices import SliceEncoder
from pipelines.generations import (
    highest_generation,
    live_generation,
    publications,
    read_manifest,
)
from pipelines.lease import Lease, hold_lease
from pipelines.listing import Listing
from pipelines.plan import Request, load_plan, plan_run, read_done, todo_table
from pipelines.progress import Progress, summary
from pipelines.records import Done, Manifest
from pipelines.slices import check_chunking, read_slices
from pipelines.source import Source
from pipelines.storage import Store, open_store


def embed_corpus(
    config: RunConfig, *, fresh: bool = False, verbose: bool = False, console: Console | None = None
) -> Manifest:
    """Run the pipeline to its commit; returns the live manifest.

    Raises:
        EmbedError: one of its kinds, each with a remedy; nothing staged is ever lost.
    """
    console = console or Console(stderr=True, quiet=True)
    config = config.with_absolute_paths()  # a worker's current directory is another one
    files = resolve_model(config.encoder)
    check_chunking(config, files)
    request = Request.of(config, files)
    source = Source(config.source)
    listing = source.list_files()
    store = open_store(config.index.uri, config.index.storage_options)

    def committed() -> Manifest | None:
        return None if fresh else _already_committed(store, request, listing.hash)

    live = committed()
    if not live:
        with hold_lease(store, _run_id(store, request, listing, fresh)) as lease:
            # Again: while this run waited for the lease another may have committed.
            live = committed()
            if not live:
                run_id = _run_id(store, request, listing, fresh)
                manifest = _run(config, request, source, listing, run_id, lease, console, verbose)
                console.print(summary(manifest, store.uri), highlight=False)
                return manifest
    console.print(f"already committed: generation {live.generation} of {store.uri}")
    return live


def _run_id(store: Store, request: Request, listing: Listing, fresh: bool) -> str:
    # Publications are counted, not generations: a run that died just before its own is the same.
    after = max(publications(store), default=0) if fresh else None
    return request.run_id(fresh_after=after, listing=listing.hash)


def _run(
    config: RunConfig,
    request: Request,
    source: Source,
    listing: Listing,
    run_id: str,
    lease: Lease,
    console: Console,
    verbose: bool,
) -> Manifest:
    store = lease.store
    newest = highest_generation(store)
    if newest and (manifest := read_manifest(store, newest)).run_id == run_id:
        finish(store, config, manifest, read_done(store, run_id))  # it died after its manifest
        return manifest
    run = plan_run(store, config, request, source, listing, run_id)
    done = read_done(store, run_id)
    todo = todo_table(run.units, done)
    if todo.num_rows:
        with ray_session(config.ray, verbose=verbose):
            refuse_local_index(store)
            progress = Progress(console, run.plan.documents, sum(r.documents for r in done))
            for batch in receipts(config, request, run_id, todo).iter_batches(
                batch_size=None, batch_format="pyarrow"
            ):
                for record in batch["done"].to_pylist():
                    progress.update(Done.model_validate_json(record))
    return commit(store, config, request, run, read_done(store, run_id), lease.check)


def receipts(config: RunConfig, request: Request, run_id: str, todo: pa.Table) -> ray.data.Dataset:
    """The data path: units in, one row for each slice out, once it is written and recorded."""
    pool = pool_for(config.ray)
    return (
        ray.data.from_arrow([todo.slice(row, 1) for row in range(todo.num_rows)])
        .map_batches(  # read + chunk + tokenise: one unit in, its slices out, each its own block
            read_slices,
            fn_kwargs={"config": config},
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=1,
        )
        .map_batches(  # encode + write + done record: one slice a call
            SliceEncoder,
            fn_constructor_kwargs={
                "config": config,
                "run_id": run_id,
                "space_fingerprint": request.space_fingerprint,
            },
            batch_size=1,
            batch_format="pyarrow",
            num_gpus=pool.gpus or None,
            num_cpus=pool.cpus,
            compute=ray.data.ActorPoolStrategy(
                size=pool.actors,
                enable_true_multi_threading=True,
                max_concurrent_calls_per_actor=config.ray.slices_per_actor,
            ),
        )
    )


def _already_committed(store: Store, request: Request, listing: str) -> Manifest | None:
    """The live manifest when it is this request's; None when nothing is committed.

    Raises:
        IndexStateError: something else is committed, naming what differs.
    """
    number = live_generation(store)
    if number is None:
        return None
    live = read_manifest(store, number)
    plan = load_plan(store, live.run_id)
    differences = request.differences(plan.request) if plan else ["its plan is gone"]
    if plan and not differences and plan.listing != listing:
        differences = ["the source's files"]
    if differences:
        raise IndexStateError(
            f"{store.uri} holds generation {number} of another request; what differs: "
            f"{', '.join(differences[:6])}{', ...' if len(differences) > 6 else ''}.",
            "Use another index.uri, or --fresh to start over beside it.",
        )
    return live


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    config: Annotated[Path, typer.Argument(help="A YAML file; see conf/.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="a.b=value, over the file; may be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N documents.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over: a new generation without a parent.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Ray's own log, and stack traces.")
    ] = False,
) -> None:
    """Embed the documents CONFIG names and commit them as an index."""
    with exit_with_one_line(verbose=verbose):
        pairs = [*(overrides or []), *([f"source.limit={limit}"] if limit is not None else [])]
        embed_corpus(
            load_config(config, pairs), fresh=fresh, verbose=verbose, console=Console(stderr=True)
        )


if __name__ == "__main__":
    app()
