"""Runs both stages on Ray Data: reading tasks, then a pool of encoding actors.

    read + chunk + tokenise (CPU tasks) -> encode + write (actor pool) -> receipts

Receipts are what the driver sees; what counts are the done records on storage.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyarrow as pa
import ray.data

from actors.errors import DeviceError
from pipelines.cluster import Pool, has_room, pool_for, ray_session, refuse_local_index
from pipelines.config_pairs import AnyRunConfig
from pipelines.config_sections import RayConfig
from pipelines.engine import EncodeJob, read_slices, slice_encoder, slice_reader
from pipelines.index import Index
from pipelines.inventory import Numbering
from pipelines.known_on_ray import KnownRefs, put_known
from pipelines.last_words import describe_journal
from pipelines.metrics import RunMetrics
from pipelines.progress import Progress
from pipelines.records import Done
from pipelines.slices import Slice, SliceReader
from pipelines.storage import Store
from pipelines.watch import PoolLostError, Watch, watched

_logger = logging.getLogger(__name__)


class RayEngine:
    """An `Engine` on a Ray cluster."""

    def __init__(self, config: RayConfig) -> None:
        self._config = config

    @contextmanager
    def running(self, store: Store, *, verbose: bool) -> Iterator[None]:
        """Connect to the cluster; refuse a local index on a cluster of several machines."""
        with ray_session(self._config, verbose=verbose):
            refuse_local_index(store)
            yield

    def share(self, index: Index, numbering: Numbering) -> KnownRefs:
        """The documents, in the object store."""
        return put_known(index, numbering.of_run)

    def encode(
        self, job: EncodeJob, todo: Callable[[], pa.Table], progress: Progress
    ) -> Iterator[Done]:
        """As `Engine`; where machines are gone for good, goes on with as many actors as fit."""
        store, metrics = job.open_store(), RunMetrics(job.run_id)
        pool, rows = pool_for(self._config), todo()
        while rows.num_rows:
            progress.stage("loading the model", actors=pool.actors)
            watch = Watch(
                stuck_seconds=60 * self._config.stuck_minutes,
                fits=functools.partial(has_room, pool),
                at=functools.partial(describe_journal, store, job.run_id, job.attempt),
            )
            try:
                with watched(watch):
                    for receipt in _stream(receipts(job, rows, pool)):
                        metrics.update(receipt)
                        yield receipt
                return
            except PoolLostError:
                pool = pool_for(self._config, shrunk=True)
                _logger.warning("machines are gone: going on with %d actors", pool.actors)
                rows = todo()


def _stream(dataset: ray.data.Dataset) -> Iterator[Done]:
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for record in batch["done"].to_pylist():
            yield Done.model_validate_json(record)


def receipts(job: EncodeJob, todo: pa.Table, pool: Pool) -> ray.data.Dataset:
    """The data path: units in, one row for each slice out, once it is written and recorded."""
    return (
        ray.data.from_arrow([todo.slice(row, 1) for row in range(todo.num_rows)])
        .map_batches(  # read + chunk + tokenise: one unit in, its slices out, each its own block
            read_rows,
            fn_kwargs={"job": job},
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=1,
        )
        .map_batches(  # encode + write + done record: one slice a call
            EncodingActor,
            fn_constructor_kwargs={"job": job, "actors": pool.most},
            batch_size=1,
            batch_format="pyarrow",
            num_gpus=pool.gpus or None,
            num_cpus=pool.cpus,
            compute=ray.data.ActorPoolStrategy(
                min_size=pool.least,
                max_size=pool.most,
                initial_size=pool.actors,
                enable_true_multi_threading=True,
                max_concurrent_calls_per_actor=job.config.ray.slices_per_actor,
            ),
        )
    )


def read_rows(batch: pa.Table, job: EncodeJob) -> Iterator[pa.Table]:
    """A reading task: rows of `todo_table` in, one-row tables (`Slice.to_row`) out."""
    reader = _cached_reader(type(job.config), job.config.model_dump_json())
    for each in read_slices(job, reader, batch):
        yield each.to_row()


@functools.lru_cache(maxsize=1)
def _cached_reader(kind: type[AnyRunConfig], config: str) -> SliceReader:
    """A worker process reads many units: it loads the tokenizer once."""
    return slice_reader(kind.model_validate_json(config))


class EncodingActor:
    """An actor of the pool: holds a model, and encodes one slice a call, several calls at once."""

    def __init__(self, job: EncodeJob, actors: int) -> None:
        """Load the model; `actors`: of the whole pool."""
        self._encoder = slice_encoder(job, actors)

    def __call__(self, row: pa.Table) -> pa.Table:
        """One slice (`Slice.to_row`) in, its receipt out: the done record as JSON.

        Ends the process when its device computes no more: Ray starts another one.
        """
        try:
            done = self._encoder.encode(Slice.from_row(row))
        except DeviceError:
            os.kill(os.getpid(), signal.SIGKILL)
            raise
        return pa.table({"done": [done.model_dump_json()]})
