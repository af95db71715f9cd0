"""Remove from an index what dead runs left, and old generations where one asks for it.

    python -m pipelines.sweep_index s3://vectors/wiki --days 7 --keep-generations 3 --dry-run

Never what a generation that stays refers to, nor what is young. The sweep holds the index's lease,
so that no run writes meanwhile. Ages are those of the store's own clock: "now" is when it wrote the
sweep's lease.
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
    """Remove the garbage that is older than `days`; returns what went, or would with `dry_run`.

    `retention`: which committed generations stay; all, when it does not say.

    Raises:
        IndexStateError: there is no index, or one so damaged that garbage cannot be told.
        LeaseHeldError: a run is writing it.
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
    if live_generation(lease.store) in garbage.generations:  # by hand, without the lease
        raise IndexStateError(
            f"{lease.store.uri}: a generation that was to go was published in the meantime.",
            "Nothing was removed; run again.",
        )
    for kind, files in garbage.by_kind.items():
        # A generation goes before its ancestors.
        batch = 1 if kind == MANIFESTS else _BATCH
        for first in range(0, len(files), batch):
            lease.check()  # another may have taken it over while this process stood still
            lease.store.delete_many(file.path for file in files[first : first + batch])


app = new_app()

_EPILOG = "Exit codes: 0 done; 1 it failed; 2 there is no index, or a run is writing it."
_SHOWN = 100


@app.command(epilog=_EPILOG)
def main(
    uri: IndexUri,
    days: Annotated[
        int, typer.Option(help="Leave everything younger than N days.", metavar="N", min=1)
    ] = 1,
    keep_generations: Annotated[
        int | None,
        typer.Option(
            help="Remove committed generations, but the live one, the newest N, the last N that "
            "were published, and the ancestors of these.",
            metavar="N",
            min=1,
        ),
    ] = None,
    keep_days: Annotated[
        float | None,
        typer.Option(
            help="Remove committed generations, but the live one, the newest, those that were "
            "committed or live in the last N days, and the ancestors of these. With "
            "--keep-generations: what either keeps stays.",
            metavar="N",
            min=0,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would go. Takes the lease too.")
    ] = False,
) -> None:
    """Remove what dead runs left in an index. A run that is to go on later is dead, too.

    Committed generations stay, unless an option says how many are enough.
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
            typer.echo(f"run {run} never committed: {slices:,} slices to be done again")
        for path in garbage.unknown[:_SHOWN]:
            typer.echo(f"left, as nothing of an index is called so: {path}")
        if len(garbage.unknown) > _SHOWN:
            typer.echo(f"... and {len(garbage.unknown) - _SHOWN:,} more")
        typer.echo(f"{removed} {_held([f for fs in garbage.by_kind.values() for f in fs])} in all")


def _held(files: list[StoredFile]) -> str:
    return f"{len(files):,} files, {sum(file.size for file in files):,} bytes"


if __name__ == "__main__":
    app()
