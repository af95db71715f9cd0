"""Rewrite the live view of an index as one generation of plain parts, where that is worth it.

    python -m pipelines.compact_index s3://vectors/wiki --dry-run

    measure -> copy live rows into new parts -> manifest -> publication

Nothing is encoded, and a reader sees the same rows before and after. Killed at any point, the live
generation is the one before; what was written by then is garbage: pipelines.sweep_index.
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
    """Compact the live generation and publish the result; None where that is not worth it.

    `force`: whatever the limits say, as long as there is anything to gain, and also where a run
    that adds to the live generation would have to start over.

    Raises:
        IndexStateError: there is no index, one that is damaged, its compaction was taken back, or
            an interrupted run adds to it.
        GateError: another generation was published meanwhile.
        LeaseHeldError: a run is writing it.
        StorageError: a part that would have been copied is damaged.
    """
    if not _is_due(LiveView.read(store), limits, force):
        return None
    with hold_lease(store, "compact") as lease:
        view = LiveView.read(store)  # again: another may have committed meanwhile
        if not _is_due(view, limits, force):
            return None
        live, outputs = view.manifest, Outputs.of(view, limits.small_bytes)
        # The same after a crash: a run that died before its publication is found again.
        run_id = fingerprint({"compacts": live.generation, "run_id": live.run_id})[:16]
        manifest = committed_by(store, run_id, live.generation)
        if manifest is None:
            if not force:
                refuse_unfinished(store, live)
            manifest = write_compacted(lease, view, outputs, run_id)
        elif manifest.generation in publications(store).values():
            raise IndexStateError(
                f"{store.uri}: generation {manifest.generation} is generation {live.generation} "
                "compacted, and was taken back.",
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
    "Exit codes: 0 done, or nothing to do; 1 it failed, and the live generation is the one before; "
    "2 there is no index, or a run is writing it or is to go on; 3 committed and not live, as "
    "another generation was published meanwhile; 130 interrupted."
)


@app.command(epilog=_EPILOG)
def main(
    uri: IndexUri,
    min_dead: Annotated[
        float, typer.Option(help="Worth it at this share of dead rows.", min=0, max=1)
    ] = _DEFAULT.min_dead,
    small_mb: Annotated[
        float, typer.Option(help="A part below so many MiB is small, and is merged.", min=0)
    ] = _DEFAULT.small_bytes / 2**20,
    small_parts: Annotated[
        int, typer.Option(help="Worth it where merging makes so many files fewer.", min=1)
    ] = _DEFAULT.small_parts,
    max_generations: Annotated[
        int, typer.Option(help="Worth it above so many generations.", min=1)
    ] = _DEFAULT.generations,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Also where no limit is reached, or an interrupted run would have to start over.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would do; takes no lease.")
    ] = False,
) -> None:
    """Rewrite the live view of an index as one generation without dead rows and small parts."""
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
            new = f"{len(outputs.rewritten):,} new parts of {old:,}, {len(outputs.kept):,} kept"
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
