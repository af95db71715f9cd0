"""One run, from its task to a live generation: plan, encode what is left, commit, gate, publish."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from actors.errors import GateError
from pipelines.cluster import ray_session, refuse_local_index
from pipelines.commit import Inherit, commit
from pipelines.config import AnyRunConfig
from pipelines.data_path import encode_units
from pipelines.done_records import DoneRecords
from pipelines.estimate import about_documents
from pipelines.generations import committed_by, live_generation, publish, read_chain
from pipelines.index import Index
from pipelines.inventory import Numbering, inventory
from pipelines.known_on_ray import KnownRefs, put_known
from pipelines.lease import Lease, hold_lease
from pipelines.listing import Listing
from pipelines.plan import Run, load_plan, plan_run, todo_table
from pipelines.progress import Progress
from pipelines.records import Done, Manifest
from pipelines.request import Request
from pipelines.run_report import read_report, write_report
from pipelines.source import Source
from pipelines.storage import Store, open_store
from pipelines.supersede import Comparison
from pipelines.tasks import Task, next_task_of
from pipelines.work import work_of


def run_to_commit(
    config: AnyRunConfig,
    *,
    fresh: bool,
    replay_rejects: bool,
    agree: Callable[[Task, Source], None] = lambda task, source: None,
    publishes: bool = True,
    verbose: bool = False,
    progress: Progress,
) -> Manifest:
    """From a configuration to its commit; the live generation where all is done.

    `agree`: as of `do_next`.

    Raises:
        EmbedError, GateError: as `do_next`.
    """
    progress.stage("looking for model and documents")
    config = config.with_absolute_paths()  # a worker's current directory is another one
    work = work_of(config)
    work.check()
    request = work.request()
    source = Source(config.source)
    listing = source.list_files()
    store = open_store(config.index.uri, config.index.storage_options)

    def next_task() -> Task | Manifest:
        return next_task_of(store, request, source, listing, fresh=fresh, replay=replay_rejects)

    how = {"verbose": verbose, "publishes": publishes}
    manifest, anything = do_next(
        next_task,
        lambda task: agree(task, source),
        config,
        request,
        listing,
        store,
        progress,
        **how,
    )
    if not anything:
        progress.already_committed(manifest.generation, store.uri)
    return manifest


def do_next(
    next_task: Callable[[], Task | Manifest],
    agree: Callable[[Task], None],
    config: AnyRunConfig,
    request: Request,
    listing: Listing,
    store: Store,
    progress: Progress,
    *,
    verbose: bool,
    publishes: bool,
) -> tuple[Manifest, bool]:
    """Do what there is to do; the newest manifest, and whether there was anything.

    `agree`: asked before a plan is pinned that no earlier try has pinned; raises where it must not.

    Raises:
        EmbedError, GateError: as `carry_out`. LeaseHeldError: another run is writing the index.
    """
    task = next_task()
    if isinstance(task, Task):
        with hold_lease(store, task.run_id) as lease:
            # Again: while this run waited for the lease another may have committed.
            task = next_task()
            if isinstance(task, Task):
                if load_plan(store, task.run_id) is None:
                    task = task.pinned()
                    agree(task)
                how = {"verbose": verbose, "publishes": publishes}
                return carry_out(config, request, task, listing, lease, progress, **how), True
    return task, False


def carry_out(
    config: AnyRunConfig,
    request: Request,
    task: Task,
    listing: Listing,
    lease: Lease,
    progress: Progress,
    *,
    verbose: bool = False,
    publishes: bool = True,
) -> Manifest:
    """Go on with a run wherever it stands; returns its manifest.

    `publishes`: make it live when it is committed.

    Raises:
        EmbedError: one of its kinds, each with a remedy; nothing staged is ever lost.
        GateError: it is committed, and must not be live.
    """
    store = lease.store
    records = DoneRecords(store, task.run_id)
    done = records.read()
    manifest = committed_by(store, task.run_id, task.parent or 0)
    if manifest:  # it died after that, or was kept from going live
        progress.start(task.run_id, manifest.counts.documents, done)
    else:
        progress.stage("planning")
        run = plan_run(
            store, config, request, task.pin, listing.files, task.run_id, task.parent, task.kind
        )
        documents, about = run.plan.documents, False
        if documents is None and task.parent is None:
            documents, about = about_documents(config, Source(config.source), run.units), True
        progress.start(task.run_id, documents, done, about=about)
        manifest = _encode_and_commit(config, request, run, task, lease, records, progress, verbose)
        done = records.read()
    if publishes:
        _publish(store, config, manifest, task.parent, done, progress.report)
    else:
        write_report(store, config, manifest, done, progress.report(), published=False)
    progress.committed(read_report(store, manifest.generation), store.uri)
    return manifest


def _encode_and_commit(
    config: AnyRunConfig,
    request: Request,
    run: Run,
    task: Task,
    lease: Lease,
    records: DoneRecords,
    progress: Progress,
    verbose: bool,
) -> Manifest:
    store = lease.store
    todo = todo_table(run.units, records.read())
    needs_ray = bool(todo.num_rows) or task.parent is not None
    if needs_ray:
        progress.stage("starting Ray")
    with ray_session(config.ray, verbose=verbose) if needs_ray else nullcontext():
        if needs_ray:
            refuse_local_index(store)
        parent = None if task.parent is None else Index(store, read_chain(store, task.parent))
        known, inherits = _inheritance(config, run, parent, progress)
        if todo.num_rows:
            encode_units(config, request, run, todo, records, progress, known)
        progress.stage("committing")
        return commit(store, config, request, run, records.read(), lease.check, inherits)


def _inheritance(
    config: AnyRunConfig, run: Run, parent: Index | None, progress: Progress
) -> tuple[KnownRefs | None, Inherit | None]:
    """What reading tasks compare with, and what the commit takes over from the parent."""
    if parent is None:
        return None, None
    progress.stage("looking at what the index has")
    numbering = Numbering(run.units)
    known = put_known(parent, numbering, config.index.storage_options)

    def compare(done: Sequence[Done], lost: Any) -> Any:
        before = inventory(parent.store, parent.info)
        return Comparison(parent, before, numbering, known.get()).inherit(done, lost)

    return known, compare


def _publish(
    store: Store,
    config: AnyRunConfig,
    manifest: Manifest,
    parent: int | None,
    done: Sequence[Done],
    this_run: Callable[[], Mapping[str, Any]],
) -> None:
    """Through the gate. Also for a run that died between its manifest and its publication."""
    number = manifest.generation
    against = [] if live_generation(store) == number else work_of(config).findings(store, manifest)
    if not against:
        if live_generation(store) != number:
            publish(store, number, over=parent)
        write_report(store, config, manifest, done, this_run(), published=True)
        return
    write_report(store, config, manifest, done, this_run(), published=False, gate=against)
    raise GateError(
        f"generation {number} of {store.uri} is committed and not published: {'; '.join(against)}.",
        "Look at it (open_index(uri, generation=N)); to make it live all the same: "
        f"python -m pipelines.publish_generation {store.uri} {number}",
    )
