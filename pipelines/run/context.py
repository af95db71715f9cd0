"""Holds the objects that the steps of a run share."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.config.run import AnyRunConfig, RunConfig
from pipelines.index.generations import refuse_folder_of_others
from pipelines.plan.request import Request
from pipelines.run.engine import Engine
from pipelines.run.gate import check_gate
from pipelines.run.job import Job, job_of
from pipelines.source.source import Source
from pipelines.source.units import Listing
from pipelines.store.store import Store, open_store
from pipelines.terminal.progress import Progress


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """A checked configuration with its job, source, store and engine."""

    config: AnyRunConfig
    """The configuration with absolute local paths, as workers have other current directories."""
    job: Job
    request: Request
    source: Source
    listing: Listing
    """The files of the source when the run began."""
    store: Store
    """The store of the index."""
    engine: Engine
    progress: Progress
    publishes: bool = True
    """Whether to publish the generation if it passes the gate."""
    verbose: bool = False

    @staticmethod
    def of(
        config: AnyRunConfig,
        progress: Progress,
        *,
        publishes: bool = True,
        verbose: bool = False,
        engine: Engine | None = None,
    ) -> RunContext:
        """Find the model and the documents; refuse a run that could never succeed.

        Raises:
            EmbedError: model, documents or settings cannot be used.
        """
        progress.stage("looking for model and documents")
        config = config.with_absolute_paths()
        job = job_of(config)
        job.blocks()  # raises if the model cannot hold such rows
        if isinstance(config, RunConfig):
            check_gate(config)
        source = Source(config.source)
        store = open_store(config.index.uri, config.index.storage_options)
        refuse_folder_of_others(store)
        return RunContext(
            config=config,
            job=job,
            request=job.request(),
            source=source,
            listing=source.list_files(),
            store=store,
            engine=engine or engine_of(config),
            progress=progress,
            publishes=publishes,
            verbose=verbose,
        )


def engine_of(config: AnyRunConfig) -> Engine:
    """Return the engine that `ray.engine` names."""
    if config.ray.engine == "in_process":
        from pipelines.run.in_process import InProcessEngine  # late: Ray takes a second to import

        return InProcessEngine()
    from pipelines.run.on_ray import RayEngine

    return RayEngine(config.ray)
