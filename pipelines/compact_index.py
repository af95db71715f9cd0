"""Rewrites the live view of an index as one generation, if that is worth the cost.

    python -m pipelines.compact_index s3://vectors/wiki --dry-run

    measure -> copy live rows into new parts -> manifest -> publication

Nothing is encoded, and readers see the same rows before and after. If the command is killed, the
previous generation stays live, and pipelines.sweep_index removes the files written so far.
"""

from __future__ import annotations

from typing import Annotated

import typer

from actors.errors import IndexStateError
from actors.fingerprint import fingerprint
from pipelines.index.generations import committed_by, publications, publish
from pipelines.index.lease import hold_lease
from pipelines.index.records import Manifest
from pipelines.maintain.compact_run import refuse_unfinished, write_compacted
from pipelines.maintain.compaction import Limits, LiveView, Outputs, in_numbers, reasons
from pipelines.store.store import Store, open_store
from pipelines.terminal.cli import IndexUri, exit_with_one_line, new_app

_DEFAULT = Limits()


def compact(store: Store, limits: Limits = _DEFAULT, *, force: bool = False) -> Manifest | None:
    """Compact the live generation and publish the result; None if that is not worth the cost.

    `force`: ignore the limits if there is anything to gain, even if an interrupted run that adds to
    the live generation would have to start over.

    Raises:
        IndexStateError: there is no index, it is damaged, its compaction was rolled back, or an
            interrupted run adds to it.
        GateError: another generation was published meanwhile.
        LeaseHeldError: a run is writing the index.
        StorageError: a part to copy is damaged.
    """
    if not _is_due(LiveView.read(store), limits, force):
        return None
    with hold_lease(store, "compact") as lease:
        view = LiveView.read(store)  # again: another run may have committed meanwhile
        if not _is_due(view, limits, force):
            return None
        live, outputs = view.manifest, Outputs.of(view, limits.small_bytes)
        # The id is the same after a crash, so that a commit without publication is found again.
        run_id = fingerprint({"compacts": live.generation, "run_id": live.run_id})[:16]
        manifest = committed_by(store, run_id, live.generation)
        if manifest is None:
            if not force:
                refuse_unfinished(store, live)
            manifest = write_compacted(lease, view, outputs, run_id)
        elif manifest.generation in publications(store).values():
            raise IndexStateError(
                f"{store.uri}: generation {manifest.generation} is the compaction of generation "
                f"{live.generation}, and was rolled back.",
                "To make it live again: python -m pipelines.publish_generation "
                f"{store.uri} {manifest.generation}",
            )
        publish(store, manifest.generation, over=live.generation)
    return manifest


def _is_due(view: LiveView, limits: Limits, force: bool) -> bool:
    outputs = Outputs.of(view, limits.small_bytes)
    return outputs.changes(view) and (force or bool(reasons(view, outputs, limits)))


app = new_app()

_EPILOG = (
    "Exit codes: 0 done, or nothing to do; 1 failed, the live generation is unchanged; 2 there is "
    "no index, a run is writing it, or an interrupted run must be finished first; 3 committed but "
    "not live, because another generation was published meanwhile; 130 interrupted."
)


@app.command(epilog=_EPILOG)
def main(
    uri: IndexUri,
    min_dead: Annotated[
        float, typer.Option(help="Compact at this share of deleted rows.", min=0, max=1)
    ] = _DEFAULT.min_dead,
    small_mb: Annotated[
        float, typer.Option(help="Size in MiB below which a part is small and merged.", min=0)
    ] = _DEFAULT.small_bytes / 2**20,
    small_parts: Annotated[
        int, typer.Option(help="Compact if merging removes this many files or more.", min=1)
    ] = _DEFAULT.small_parts,
    max_generations: Annotated[
        int, typer.Option(help="Compact above this number of generations.", min=1)
    ] = _DEFAULT.generations,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Compact below the limits too, even if an interrupted run must then start over.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be done; takes no lease.")
    ] = False,
) -> None:
    """Rewrite the live view of an index as one generation without deleted rows and small parts."""
    with exit_with_one_line():
        limits = Limits(
            min_dead=min_dead,
            small_bytes=int(small_mb * 2**20),
            small_parts=small_parts,
            generations=max_generations,
        )
        store = open_store(uri)
        view = LiveView.read(store)
        outputs = Outputs.of(view, limits.small_bytes)
        manifest = None
        if _is_due(view, limits, force):
            why = "; ".join(reasons(view, outputs, limits)) or "--force"
            old = sum(len(group) for group in outputs.rewritten)
            new = f"{len(outputs.rewritten):,} new parts from {old:,}, {len(outputs.kept):,} kept"
            if dry_run:
                typer.echo(f"would compact generation {view.manifest.generation} ({why}): {new}")
                return
            manifest = compact(store, limits, force=force)
        if manifest is None:
            typer.echo(f"nothing to do: {in_numbers(view, outputs, limits)}")
            return
        typer.echo(
            f"generation {manifest.generation} is live: generation {manifest.compacts} compacted "
            f"({why}), {new}"
        )


if __name__ == "__main__":
    app()
