"""Runs both stages on Ray Data: reading tasks, then a pool of encoding actors.

    read + chunk + tokenise (CPU tasks) -> encode + write (actor pool) -> receipts

A receipt is a copy of a done record for the driver. Only the done records on storage count.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.util.metrics import Counter, Histogram

from actors.errors import DeviceError
from pipelines.cluster.ray_cluster import Pool, has_room, pool_for, ray_session, refuse_local_index
from pipelines.cluster.watch import PoolLostError, Watch, watched
from pipelines.config.run import AnyRunConfig
from pipelines.config.sections import RayConfig
from pipelines.encode.crash_journal import describe_journal
from pipelines.index.reader import Index
from pipelines.index.records import Done
from pipelines.passages.slices import Slice, SliceReader
from pipelines.plan.inventory import Numbering
from pipelines.plan.known import Bucket, KnownDocuments
from pipelines.plan.mentions import (
    MentionFile,
    Mentions,
    deletions,
    gather,
    mention_files,
    read_mentions,
    resolve,
)
from pipelines.run.engine import EncodeJob, read_slices, slice_encoder, slice_reader
from pipelines.store.store import Store
from pipelines.terminal.progress import Progress

# Narrow buckets, because Ray computes a histogram's _sum from the middle of each bucket.
_SECONDS = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]


class RunMetrics:
    """Metrics of a run, updated with receipts; needs a connection to Ray."""

    def __init__(self, run_id: str) -> None:
        """Tag every value with `run_id`."""
        self._tags = {"run_id": run_id}
        self._documents = _counter("documents", "Documents read, rejected ones included.")
        self._passages = _counter("passages", "Passages embedded.")
        self._tokens = _counter("tokens", "Tokens embedded, special tokens included.")
        self._rejects = _counter("rejects", "Rejects by reason.", "code")
        self._bytes = _counter("output_bytes", "Bytes of parts written.")
        self._seconds = Histogram(
            "packvec_slice_seconds",
            "From the arrival of a slice at its actor to its done record.",
            boundaries=_SECONDS,
            tag_keys=("run_id",),
        )

    def update(self, done: Done) -> None:
        """Add the numbers of one slice."""
        sums = {
            self._documents: done.documents,
            self._passages: done.passages,
            self._tokens: done.encoded_tokens,
            self._bytes: done.part.bytes if done.part else 0,
        }
        for counter, value in sums.items():
            if value:  # Ray refuses to add 0
                counter.inc(value, self._tags)
        for code, value in done.rejects.items():
            self._rejects.inc(value, self._tags | {"code": code})
        self._seconds.observe(done.seconds, self._tags)


def _counter(name: str, description: str, *labels: str) -> Counter:
    return Counter(f"packvec_{name}_total", description, tag_keys=("run_id", *labels))


BUCKET_DOCUMENTS = 10_000_000
_FILES_IN_TASK = 64


@dataclass(frozen=True)
class KnownRefs:
    """References to the known documents in Ray's object store."""

    buckets: tuple[ray.ObjectRef[Bucket], ...]
    parts: ray.ObjectRef[list[str]]

    def get(self) -> KnownDocuments:
        """Return the documents, without copying arrays of buckets."""
        return KnownDocuments(ray.get(list(self.buckets)), ray.get(self.parts))


def put_known(index: Index, units_of: Callable[[str], np.ndarray]) -> KnownRefs:
    """Put the live documents in the object store; `units_of`: run id -> new unit numbers."""
    counts = index.info.counts
    buckets = buckets_for(counts.documents + counts.unchanged)
    if buckets == 1:
        refs = [ray.put(gather(index, units_of))]
    else:
        refs = _on_cluster(index, units_of, buckets)
    return KnownRefs(tuple(refs), ray.put(index.part_paths))


def buckets_for(documents: int) -> int:
    """Return a power of two, so that a bucket holds at most about BUCKET_DOCUMENTS documents."""
    return 1 << max(-(-documents // BUCKET_DOCUMENTS) - 1, 0).bit_length()


def _on_cluster(
    index: Index, units_of: Callable[[str], np.ndarray], buckets: int
) -> list[ray.ObjectRef[Bucket]]:
    read = ray.remote(num_cpus=1, num_returns=buckets)(_read_all)
    merge = ray.remote(num_cpus=1)(_merge)
    mentions, files = Mentions(index.part_paths, buckets), mention_files(index, units_of)
    found = [[ray.put(rows) for rows in each] for each in deletions(index, mentions)]
    shared = ray.put(index.part_paths)
    while group := list(islice(files, _FILES_IN_TASK)):
        found.append(read.remote(index.store, group, shared, buckets))
    return [merge.remote(*(rows[bucket] for rows in found)) for bucket in range(buckets)]


def _read_all(
    store: Store, files: list[MentionFile], parts: list[str], buckets: int
) -> tuple[np.ndarray, ...]:
    found = read_mentions(store, Mentions(parts, buckets), files)
    return tuple(np.concatenate(rows) for rows in zip(*found, strict=True))


def _merge(*mentions: np.ndarray) -> Bucket:
    return resolve(mentions)


_logger = logging.getLogger(__name__)


class RayEngine:
    """An `Engine` on a Ray cluster."""

    def __init__(self, config: RayConfig) -> None:
        self._config = config

    @contextmanager
    def running(self, store: Store, *, verbose: bool) -> Iterator[None]:
        """Connect to the cluster; refuse a local index on several machines."""
        with ray_session(self._config, verbose=verbose):
            refuse_local_index(store)
            yield

    def share(self, index: Index, numbering: Numbering) -> Callable[[], KnownDocuments]:
        """Put the documents in the object store; see `Engine`."""
        return put_known(index, numbering.of_run).get

    def encode(
        self, job: EncodeJob, todo: Callable[[], pa.Table], progress: Progress
    ) -> Iterator[Done]:
        """Encode with a pool of actors; if machines are lost, continue with as many as fit."""
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
                _logger.warning("machines were lost: continuing with %d actors", pool.actors)
                rows = todo()


def _stream(dataset: ray.data.Dataset) -> Iterator[Done]:
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for record in batch["done"].to_pylist():
            yield Done.model_validate_json(record)


def receipts(job: EncodeJob, todo: pa.Table, pool: Pool) -> ray.data.Dataset:
    """Return the Ray dataset from units to one receipt per slice, sent once it is recorded."""
    return (
        ray.data.from_arrow([todo.slice(row, 1) for row in range(todo.num_rows)])
        .map_batches(  # read + chunk + tokenise: one unit in, one block for each slice out
            read_rows,
            fn_kwargs={"job": job},
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=1,
        )
        .map_batches(  # encode + write + done record: one slice per call
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
    """Run a reading task: rows of `todo_table` in, one-row tables (`Slice.to_row`) out."""
    reader = _cached_reader(type(job.config), job.config.model_dump_json())
    for each in read_slices(job, reader, batch):
        yield each.to_row()


@functools.lru_cache(maxsize=1)
def _cached_reader(kind: type[AnyRunConfig], config: str) -> SliceReader:
    """Return the reader of a worker process, which loads the tokenizer once for many units."""
    return slice_reader(kind.model_validate_json(config))


class EncodingActor:
    """An actor of the pool: it holds a model and encodes one slice per call, calls overlap."""

    def __init__(self, job: EncodeJob, actors: int) -> None:
        """Load the model; `actors` is the size of the pool."""
        self._encoder = slice_encoder(job, actors)

    def __call__(self, row: pa.Table) -> pa.Table:
        """Encode one slice (`Slice.to_row`); return its receipt, the done record as JSON.

        Kills the process if its device fails, so that Ray starts another one.
        """
        try:
            done = self._encoder.encode(Slice.from_row(row))
        except DeviceError:
            os.kill(os.getpid(), signal.SIGKILL)
            raise
        return pa.table({"done": [done.model_dump_json()]})
