"""The data path: units in, done records out, on Ray.

    read + chunk + tokenise (CPU tasks) -> encode + write (actor pool) -> receipts

Receipts are what the driver sees; what counts are the done records on storage.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator

import pyarrow as pa
import ray.data

from pipelines.cluster import Pool, has_room, pool_for
from pipelines.config import AnyRunConfig, RunConfig
from pipelines.done_records import DoneRecords
from pipelines.encode_slices import SliceEncoder
from pipelines.known_on_ray import KnownRefs
from pipelines.last_words import describe_words
from pipelines.layout import new_nonce
from pipelines.metrics import RunMetrics
from pipelines.plan import Run, todo_table
from pipelines.progress import Progress
from pipelines.read_slices import read_slices
from pipelines.records import Done
from pipelines.request import Request
from pipelines.watch import PoolLostError, Watch, watched

_logger = logging.getLogger(__name__)


def encode_units(
    config: AnyRunConfig,
    request: Request,
    run: Run,
    todo: pa.Table,
    records: DoneRecords,
    progress: Progress,
    known: KnownRefs | None = None,
) -> None:
    """Encode what is left to do; where machines are gone for good, with as many actors as fit.

    Raises:
        EmbedError: nothing moved for ray.stuck_minutes, or what a worker raised.
    """
    run_id, session, store = run.plan.run_id, new_nonce(), records.store
    metrics, pool = RunMetrics(run_id), pool_for(config.ray)
    while todo.num_rows:
        progress.stage("loading the model", actors=pool.actors)
        watch = Watch(
            stuck_seconds=60 * config.ray.stuck_minutes,
            fits=functools.partial(has_room, pool),
            at=functools.partial(describe_words, store, run_id, session),
        )
        try:
            with watched(watch):
                for receipt in _stream(
                    receipts(config, request, run_id, session, todo, pool, known)
                ):
                    records.add(receipt)
                    progress.update(receipt)
                    metrics.update(receipt)
            break
        except PoolLostError:
            pool = pool_for(config.ray, shrunk=True)
            _logger.warning("machines are gone: going on with %d actors", pool.actors)
            todo = todo_table(run.units, records.read())
        except KeyboardInterrupt:
            progress.stage("stopping")
            raise
    if isinstance(config, RunConfig):  # what --dry-run asks for
        progress.remember(config)


def _stream(dataset: ray.data.Dataset) -> Iterator[Done]:
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for record in batch["done"].to_pylist():
            yield Done.model_validate_json(record)


def receipts(
    config: AnyRunConfig,
    request: Request,
    run_id: str,
    session: str,
    todo: pa.Table,
    pool: Pool,
    known: KnownRefs | None,
) -> ray.data.Dataset:
    """The data path: units in, one row for each slice out, once it is written and recorded.

    `session`: a name of this try of the run; `known`: what re-indexing compares with.
    """
    return (
        ray.data.from_arrow([todo.slice(row, 1) for row in range(todo.num_rows)])
        .map_batches(  # read + chunk + tokenise: one unit in, its slices out, each its own block
            read_slices,
            fn_kwargs={"config": config, "run_id": run_id, "session": session, "known": known},
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
                "session": session,
                "actors": pool.most,
            },
            batch_size=1,
            batch_format="pyarrow",
            num_gpus=pool.gpus or None,
            num_cpus=pool.cpus,
            compute=ray.data.ActorPoolStrategy(
                min_size=pool.least,
                max_size=pool.most,
                initial_size=pool.actors,
                enable_true_multi_threading=True,
                max_concurrent_calls_per_actor=config.ray.slices_per_actor,
            ),
        )
    )
