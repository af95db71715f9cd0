"""Compacts an index: writes parts, tables and manifest of a generation with the same live view.

As in every run, the plan is stored first and the manifest last; files of a run that died are
garbage.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

from actors.errors import IndexStateError
from pipelines.index.generations import (
    committed_by,
    create_manifest,
    highest_generation,
    software_versions,
    write_tables,
)
from pipelines.index.layout import (
    commit_rejects_path,
    done_folder,
    generation_path,
    plan_path,
    units_path,
)
from pipelines.index.lease import Lease
from pipelines.index.parts import write_table
from pipelines.index.reader import Index
from pipelines.index.records import Counts, Manifest
from pipelines.index.schemas import DELETIONS_SCHEMA
from pipelines.maintain.compaction import LiveView, Outputs
from pipelines.maintain.rewrite import CurrentPlaces, NewPart, PartRewriter, ledgers_by_part
from pipelines.plan.inventory import inventory, plan_of, read_again
from pipelines.plan.plan import load_plan, units_to_bytes
from pipelines.reports.run_report import RunReport, write_page
from pipelines.source.units import Unit
from pipelines.store.store import Store

_THREADS = 4  # each needs memory for a row group and disk space for a new part


def write_compacted(lease: Lease, view: LiveView, outputs: Outputs, run_id: str) -> Manifest:
    """Commit the live view as a generation without a parent; the caller publishes it.

    Raises:
        LeaseHeldError: another run has taken over the lease.
        StorageError: a part to copy is damaged.
        IndexStateError: ledger and deletions contradict each other, or another run has committed.
    """
    started = _now()
    store = lease.store
    manifests = [generation.manifest for generation in view.chain]
    units = inventory(store, view.manifest)
    _pin(store, run_id, view.manifest, units, started)
    rewriter = PartRewriter(
        store, run_id, CurrentPlaces(store, view.chain, units), ledgers_by_part(store, view.chain)
    )
    jobs = [partial(rewriter.keep, n, part) for n, part in enumerate(outputs.kept)]
    jobs += [
        partial(rewriter.rewrite, n, olds) for n, olds in enumerate(outputs.rewritten, len(jobs))
    ]
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        parts = list(pool.map(lambda job: job(), jobs))  # an error cancels waiting jobs
    nonce, number = rewriter.nonce, highest_generation(store) + 1
    rejects = Index(store, manifests).rejects()
    path = commit_rejects_path(run_id, nonce)
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
    counts = Counts(
        documents=sum(part.documents for part in parts),
        passages=sum(part.part.rows for part in parts),
        tokens=sum(part.tokens for part in parts),
        truncated=sum(part.truncated for part in parts),
        encoded=0,
        rejects=dict(sorted(Counter(rejects["code"].to_pylist()).items())),
    )
    live, dtypes = view.manifest, {name for m in manifests for name in m.model.dtypes}
    manifest = live.model_copy(
        update={
            "generation": number,
            "parent": None,
            "compacts": live.generation,
            "run_id": run_id,
            "model": live.model.model_copy(update={"dtypes": sorted(dtypes)}),
            "counts": counts,
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


def refuse_unfinished(store: Store, live: Manifest) -> None:
    """Raise if an interrupted run with finished slices adds to the live generation.

    Raises:
        IndexStateError: such a run exists. Its slices would be lost, as they fit no other parent.
    """
    for folder in store.list_folders("runs"):
        run_id = folder.rsplit("/", 1)[-1]
        plan = load_plan(store, run_id)
        if plan is None or plan.parent != live.generation:
            continue
        slices = len(store.list(done_folder(run_id)))
        if slices and committed_by(store, run_id, live.generation) is None:
            raise IndexStateError(
                f"{store.uri}: run {run_id} adds to generation {live.generation} and is not "
                f"finished; {slices:,} finished slices would be lost.",
                "Finish that run first by repeating its command, or add --force to compact anyway.",
            )


def _pin(store: Store, run_id: str, live: Manifest, units: Sequence[Unit], started: str) -> None:
    """Store the plan: the units that the live generation covers, as if this run had read them."""
    plan = plan_of(store, live)
    units = read_again(units, {unit.number for unit in units})
    known = [unit.documents_wanted for unit in units]
    pinned = plan.model_copy(
        update={
            "run_id": run_id,
            "kind": "compact",
            "parent": None,
            "units": len(units),
            "documents": None if None in known else sum(filter(None, known)),
            "created": started,
        }
    )
    # An earlier attempt may have left both files, with the same content.
    store.create_exclusive(units_path(run_id), units_to_bytes(units, plan.listing))
    store.create_exclusive(plan_path(run_id), pinned.to_bytes())


def _report(store: Store, view: LiveView, manifest: Manifest, parts: Sequence[NewPart]) -> None:
    """Write report.json and report.html, and copy config.yaml of the compacted generation."""
    before = {part.path for part in view.parts}
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
    with suppress(FileNotFoundError):  # its run died before it wrote the file
        config = store.read(generation_path(view.manifest.generation, name))
        store.overwrite(generation_path(number, name), config)
    store.overwrite(generation_path(number, "report.json"), json.dumps(report, indent=1).encode())
    write_page(RunReport(store, manifest, [], report))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
