"""Rewrite the live view of an index as one generation of plain parts, where that is worth it.

    python -m pipelines.compact_index s3://vectors/wiki --dry-run

    measure -> copy live rows into new parts -> manifest -> publication

Nothing is encoded, and a reader sees the same rows before and after. Killed at any point, the live
generation is the one before; what was written by then is garbage: pipelines.sweep_index.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

import typer

from actors.errors import IndexStateError
from actors.fingerprint import fingerprint
from pipelines.cli import exit_with_one_line
from pipelines.compaction import Limits, LiveView, Outputs, in_numbers, reasons
from pipelines.current_places import CurrentPlaces
from pipelines.generations import committed_by, highest_generation, publications, publish
from pipelines.index import Index
from pipelines.inventory import inventory, plan_of
from pipelines.layout import generation_path, plan_path, units_path
from pipelines.lease import Lease, hold_lease
from pipelines.manifests import create_manifest, software_versions, write_tables
from pipelines.output import write_table
from pipelines.plan import units_to_bytes
from pipelines.records import DELETIONS_SCHEMA, Counts, Manifest, Plan
from pipelines.rewrite_parts import NewPart, PartRewriter, ledgers_by_part
from pipelines.source import Unit
from pipelines.storage import Store, open_store

_THREADS = 4  # each holds a row group, and a new part on the local disk
_DEFAULT = Limits()


def compact(store: Store, limits: Limits = _DEFAULT, *, force: bool = False) -> Manifest | None:
    """Compact the live generation and publish the result; None where that is not worth it.

    `force`: whatever the limits say, as long as there is anything to gain.

    Raises:
        IndexStateError: there is no index, one that is damaged, or its compaction was taken back.
        LeaseHeldError: a run is writing it.
        StorageError: a part that would have been copied is damaged.
    """
    if not _is_due(LiveView.read(store), limits, force):
        return None
    with hold_lease(store, "compact") as lease:
        view = LiveView.read(store)  # again: another may have committed meanwhile
        if not _is_due(view, limits, force):
            return None
        started, live = _now(), view.manifest
        run_id = _run_id(live)
        manifest = committed_by(store, run_id, live.generation)
        if manifest is None:
            manifest = _commit(lease, view, Outputs.of(view, limits.small_bytes), run_id, started)
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


def _run_id(live: Manifest) -> str:
    """The same after a crash: a run that died before its publication is found again."""
    return fingerprint({"compacts": live.generation, "run_id": live.run_id})[:16]


def _commit(lease: Lease, view: LiveView, outputs: Outputs, run_id: str, started: str) -> Manifest:
    store = lease.store
    manifests = [generation.manifest for generation in view.chain]
    units = inventory(store, manifests)
    _pin(store, run_id, view.manifest, units, started)
    rewriter = PartRewriter(
        store, run_id, CurrentPlaces(store, view.chain, units), ledgers_by_part(store, view.chain)
    )
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        jobs = [pool.submit(rewriter.keep, n, part) for n, part in enumerate(outputs.kept)]
        jobs += [
            pool.submit(rewriter.rewrite, n, parts)
            for n, parts in enumerate(outputs.rewritten, len(jobs))
        ]
        try:
            parts = [job.result() for job in jobs]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    nonce, number = rewriter.nonce, highest_generation(store) + 1
    rejects = Index(store, manifests).rejects()
    codes = Counter(rejects["code"].to_pylist())
    path = f"rejects/{run_id}/commit-{nonce}.parquet"
    lease.check()
    tables = write_tables(
        store,
        number,
        nonce,
        parts=[part.part for part in parts],
        documents=[part.ledger for part in parts if part.ledger],
        rejects=[write_table(store, rejects, path)] if rejects.num_rows else [],
        deletions=DELETIONS_SCHEMA.empty_table(),
    )
    live, dtypes = view.manifest, {name for m in manifests for name in m.model.dtypes}
    manifest = live.model_copy(
        update={
            "generation": number,
            "parent": None,
            "compacts": live.generation,
            "run_id": run_id,
            "model": live.model.model_copy(update={"dtypes": sorted(dtypes)}),
            "counts": _counts(parts, codes),
            "started": started,
            "ended": _now(),
            "versions": software_versions(),
            "tables": tables,
        }
    )
    lease.check()
    manifest = create_manifest(store, manifest)
    _report(store, view, manifest, parts)
    return manifest


def _pin(store: Store, run_id: str, live: Manifest, units: Sequence[Unit], started: str) -> None:
    """The plan: as if this run had read what the live generation is of."""
    plan = plan_of(store, live)
    units = [replace(unit, wanted=((0, None),), origins=()) for unit in units]
    known = [unit.documents_wanted for unit in units]
    pinned = Plan(
        run_id=run_id,
        kind="compact",
        parent=None,
        request=plan.request,
        listing=plan.listing,
        units=len(units),
        documents=None if None in known else sum(filter(None, known)),
        config=plan.config,
        created=started,
    )
    # An earlier try may have left both; they say the same.
    store.create_exclusive(units_path(run_id), units_to_bytes(units, plan.listing))
    store.create_exclusive(plan_path(run_id), pinned.to_bytes())


def _counts(parts: Sequence[NewPart], rejects: Counter[str]) -> Counts:
    return Counts(
        documents=sum(part.documents for part in parts),
        passages=sum(part.part.rows for part in parts),
        tokens=sum(part.tokens for part in parts),
        truncated=sum(part.truncated for part in parts),
        encoded=0,
        rejects=dict(sorted(rejects.items())),
    )


def _report(store: Store, view: LiveView, manifest: Manifest, parts: Sequence[NewPart]) -> None:
    """report.json, and the configuration of the generation that was compacted."""
    before = {part.file.path for part in view.parts}
    report = {
        "generation": manifest.generation,
        "compacts": manifest.compacts,
        "run_id": manifest.run_id,
        "started": manifest.started,
        "ended": manifest.ended,
        "counts": manifest.counts.model_dump(),
        "generations": len(view.chain),
        "rows_removed": view.dead_rows,
        "parts_before": len(before),
        "parts": len(parts),
        "parts_kept": sum(part.part.path in before for part in parts),
        "bytes_before": sum(part.file.bytes for part in view.parts),
        "bytes": sum(part.part.bytes for part in parts),
        "bytes_written": sum(part.part.bytes for part in parts if part.part.path not in before),
    }
    number, name = manifest.generation, "config.yaml"
    try:
        config = store.read(generation_path(view.manifest.generation, name))
    except FileNotFoundError:
        pass  # its run died before it wrote one
    else:
        store.overwrite(generation_path(number, name), config)
    store.overwrite(generation_path(number, "report.json"), json.dumps(report, indent=1).encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_EPILOG = (
    "Exit codes: 0 done, or nothing to do; 1 it failed, and the live generation is the one before; "
    "2 there is no index, or a run is writing it; 130 interrupted."
)


@app.command(epilog=_EPILOG)
def main(
    uri: Annotated[str, typer.Argument(help="The index: a local path or s3://...")],
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
        bool, typer.Option("--force", help="Whether it is worth it or not, if there is anything.")
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
