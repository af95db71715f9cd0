"""Runs a task to a live generation: plan, encode the remaining slices, commit, gate, publish."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

from actors.errors import GateError
from actors.models.files import resolve_model
from pipelines.config.run import RunConfig
from pipelines.estimate.confirm import Permit
from pipelines.estimate.estimate import about_documents
from pipelines.estimate.speed import remember_speed
from pipelines.index.generations import committed_by, live_generation, publish, read_chain
from pipelines.index.layout import new_nonce
from pipelines.index.lease import Lease, hold_lease
from pipelines.index.reader import Index
from pipelines.index.records import Done, Manifest
from pipelines.plan.inventory import Numbering, inventory
from pipelines.plan.plan import DoneRecords, PlannedRun, load_plan, plan_run, todo_table
from pipelines.reports.run_report import read_report, write_report
from pipelines.run.commit import commit
from pipelines.run.context import RunContext
from pipelines.run.engine import EncodeJob
from pipelines.run.gate import findings
from pipelines.run.supersede import Comparison
from pipelines.run.tasks import Task


def run_next(
    context: RunContext,
    next_task: Callable[[], Task | Manifest],
    say_idle: Callable[[int, str], None],
    permit: Permit | None = None,
) -> Manifest:
    """Run the next task, if any; returns the newest manifest.

    `say_idle(generation, uri)` reports that there is nothing to do. `permit` confirms a large run
    before its plan is stored; later attempts do not ask again.

    Raises:
        EmbedError: the run failed; the message has a remedy, and finished slices are kept.
        ConfigError: the run is large and was not confirmed.
        LeaseHeldError: another run is writing to the index.
        GateError: the new generation is committed, but not live.
    """
    task = next_task()
    if isinstance(task, Task):
        with hold_lease(context.store, task.run_id) as lease:
            task = next_task()  # another run may have committed before this one got the lease
            if isinstance(task, Task):
                if load_plan(context.store, task.run_id) is None:
                    task = task.pinned()
                    _confirm(context, task, permit or Permit())
                return _carry_out(context, task, lease)
    say_idle(task.generation, context.store.uri)
    return task


def _confirm(context: RunContext, task: Task, permit: Permit) -> None:
    config = context.config
    if task.confirms and isinstance(config, RunConfig):
        wanted = [unit for unit in task.pin()[0] if unit.wanted]
        files = resolve_model(config.encoder)
        permit.check(config, files, context.source, wanted, context.progress)


def _carry_out(context: RunContext, task: Task, lease: Lease) -> Manifest:
    """Start or continue a run; returns its manifest."""
    store, progress = context.store, context.progress
    records = DoneRecords(store, task.run_id)
    done = records.read()
    manifest = committed_by(store, task.run_id, task.parent or 0)
    if manifest:  # the run died after its commit, or it failed the gate
        progress.start(task.run_id, manifest.counts.documents, done)
    else:
        run = _plan(context, task, done)
        manifest = _encode_and_commit(context, run, records, lease)
        done = records.read()
    _publish(context, manifest, done, over=task.parent)
    progress.committed(read_report(store, manifest.generation), store.uri)
    return manifest


def _plan(context: RunContext, task: Task, done: Sequence[Done]) -> PlannedRun:
    context.progress.stage("planning")
    run = plan_run(
        context.store,
        context.config,
        context.request,
        task.pin,
        context.listing.files,
        task.run_id,
        task.parent,
        task.kind,
    )
    documents, about = run.plan.documents, False
    if documents is None and task.parent is None:
        documents, about = about_documents(context.config, context.source, run.units), True
    context.progress.start(task.run_id, documents, done, about=about)
    return run


def _encode_and_commit(
    context: RunContext, run: PlannedRun, records: DoneRecords, lease: Lease
) -> Manifest:
    store, progress, engine = context.store, context.progress, context.engine
    anything = todo_table(run.units, records.read()).num_rows > 0
    needs_engine = anything or run.plan.parent is not None
    if needs_engine:
        progress.stage("starting Ray" if context.config.ray.engine == "ray" else "starting")
    with engine.running(store, verbose=context.verbose) if needs_engine else nullcontext():
        parent, known, numbering = None, None, Numbering(run.units)
        if run.plan.parent is not None:
            progress.stage("reading the ledger of the index")
            parent = Index(store, read_chain(store, run.plan.parent))
            known = engine.share(parent, numbering)
        if anything:
            job = EncodeJob(
                context.config,
                run.plan.run_id,
                new_nonce(),
                context.request.space_fingerprint,
                known,
            )
            _encode(context, run, records, job)
        progress.stage("committing")
        comparison = None
        if parent is not None and known is not None:
            before = inventory(store, parent.info)
            comparison = Comparison(parent, before, numbering, known())
        return commit(context, run, records.read(), lease.check, comparison)


def _encode(context: RunContext, run: PlannedRun, records: DoneRecords, job: EncodeJob) -> None:
    progress = context.progress
    try:
        for done in context.engine.encode(
            job, lambda: todo_table(run.units, records.read()), progress
        ):
            records.add(done)
            progress.update(done)
    except KeyboardInterrupt:
        progress.stage("stopping")
        raise
    measured = progress.actor_speed()
    if measured and isinstance(context.config, RunConfig):
        remember_speed(context.config, *measured)  # for the next --dry-run


def _publish(
    context: RunContext, manifest: Manifest, done: Sequence[Done], *, over: int | None
) -> None:
    """Publish a generation that passes the gate, if the run publishes; write the report.

    This also completes a run that died between manifest and publication.
    """
    store, config, number = context.store, context.config, manifest.generation
    against: list[str] = []
    if context.publishes and live_generation(store) != number and isinstance(config, RunConfig):
        against = findings(store, config, manifest)
    published = context.publishes and not against
    if published and live_generation(store) != number:
        publish(store, number, over=over)
    this_run = context.progress.report()
    write_report(store, config, manifest, done, this_run, published=published, gate=against)
    if against:
        raise GateError(
            f"generation {number} of {store.uri} is committed and not published: "
            f"{'; '.join(against)}.",
            "Inspect it with open_index(uri, generation=N); to make it live anyway: "
            f"python -m pipelines.publish_generation {store.uri} {number}",
        )
