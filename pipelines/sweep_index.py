"""Removes the files of dead runs from an index, and on request old generations.

    python -m pipelines.sweep_index s3://vectors/wiki --days 7 --keep-generations 3 --dry-run

Files that a kept generation refers to, and recent files, are never removed. The sweep holds the
index's lease, so that no run writes meanwhile. File ages are measured by the clock of the store,
from the time at which it wrote the sweep's lease.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from actors.errors import IndexStateError
from pipelines.index.generations import live_generation
from pipelines.index.layout import recognise
from pipelines.index.lease import Lease, hold_lease
from pipelines.maintain.garbage import (
    KEEP_ALL,
    MANIFESTS,
    Garbage,
    Retention,
    find_garbage,
)
from pipelines.store.files import StoredFile
from pipelines.store.store import Store, open_store
from pipelines.terminal.cli import IndexUri, exit_with_one_line, new_app

_BATCH = 1000


def sweep(
    store: Store,
    *,
    days: float = 1,
    retention: Retention = KEEP_ALL,
    dry_run: bool = False,
) -> Garbage:
    """Remove garbage older than `days`; return it. With `dry_run`, remove nothing.

    `retention`: the committed generations to keep; by default all.

    Raises:
        IndexStateError: there is no index, or it is too damaged to recognise garbage.
        LeaseHeldError: a run is writing the index.
    """
    places = (recognise(file.path) for file in store.find())
    if all(place is None or place[0] == "temporary" for place in places):
        raise IndexStateError(f"{store.uri}: expected an index, found none.", "Correct the path.")
    with hold_lease(store, "sweep") as lease:
        garbage = find_garbage(store, lease.epoch, timedelta(days=days), retention)
        if not dry_run:
            _remove(lease, garbage)
    return garbage


def _remove(lease: Lease, garbage: Garbage) -> None:
    if live_generation(lease.store) in garbage.generations:  # publishing takes no lease
        raise IndexStateError(
            f"{lease.store.uri}: a generation to be removed was published in the meantime.",
            "Nothing was removed; run the command again.",
        )
    for kind, files in garbage.by_kind.items():
        # A generation is removed before its ancestors.
        batch = 1 if kind == MANIFESTS else _BATCH
        for first in range(0, len(files), batch):
            lease.check()  # another process may have taken it over while this one was suspended
            lease.store.delete_many(file.path for file in files[first : first + batch])


app = new_app()

_EPILOG = "Exit codes: 0 done; 1 failed; 2 there is no index, or a run is writing it."
_SHOWN = 100


@app.command(epilog=_EPILOG)
def main(
    uri: IndexUri,
    days: Annotated[
        int, typer.Option(help="Keep files that are younger than N days.", metavar="N", min=1)
    ] = 1,
    keep_generations: Annotated[
        int | None,
        typer.Option(
            help="Remove committed generations except the live one, the newest N, the last N that "
            "were published, and the ancestors of all of them.",
            metavar="N",
            min=1,
        ),
    ] = None,
    keep_days: Annotated[
        float | None,
        typer.Option(
            help="Remove committed generations except the live one, the newest, those that were "
            "committed or live in the last N days, and the ancestors of all of them. With "
            "--keep-generations, a generation stays if either option keeps it.",
            metavar="N",
            min=0,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be removed; takes the lease.")
    ] = False,
) -> None:
    """Remove the files of dead runs from an index. An interrupted run counts as dead.

    Committed generations are kept unless an option limits them.
    """
    with exit_with_one_line():
        retention = Retention(generations=keep_generations, days=keep_days)
        garbage = sweep(open_store(uri), days=days, retention=retention, dry_run=dry_run)
        removed = "would remove" if dry_run else "removed"
        for number in reversed(garbage.generations):
            typer.echo(f"{removed} generation {number}")
        for kind, files in garbage.by_kind.items():
            if files:
                typer.echo(f"{removed} {_held(files)}: {kind}")
            for file in files if dry_run else []:
                typer.echo(f"  {file.path}")
        for run, slices in garbage.slices.items():
            typer.echo(f"run {run} never committed: {slices:,} slices to encode again")
        for path in garbage.unknown[:_SHOWN]:
            typer.echo(f"kept, not a file of an index: {path}")
        if len(garbage.unknown) > _SHOWN:
            typer.echo(f"... and {len(garbage.unknown) - _SHOWN:,} more")
        typer.echo(f"{removed} {_held([f for fs in garbage.by_kind.values() for f in fs])} in all")


def _held(files: list[StoredFile]) -> str:
    return f"{len(files):,} files, {sum(file.size for file in files):,} bytes"


if __name__ == "__main__":
    app()
