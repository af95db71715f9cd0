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

# Ray reports a histogram's _sum as if every value lay in the middle of its bucket.
_SECONDS = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]


class RunMetrics:
    """Fed with receipts; needs a connection to Ray."""

    def __init__(self, run_id: str) -> None:
        """Every value carries `run_id`."""
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
        """Count one slice."""
        sums = {
            self._documents: done.documents,
            self._passages: done.passages,
            self._tokens: done.encoded_tokens,
            self._bytes: done.part.bytes if done.part else 0,
        }
        for counter, value in sums.items():
            if value:  # Ray refuses to count nothing
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
    """Known documents in the object store."""

    buckets: tuple[ray.ObjectRef[Bucket], ...]
    parts: ray.ObjectRef[list[str]]

    def get(self) -> KnownDocuments:
        """The documents, read in place: no array of a bucket is copied."""
        return KnownDocuments(ray.get(list(self.buckets)), ray.get(self.parts))


def put_known(index: Index, units_of: Callable[[str], np.ndarray]) -> KnownRefs:
    """The live documents of an index; `units_of`: run id -> new numbers of its units."""
    counts = index.info.counts
    buckets = buckets_for(counts.documents + counts.unchanged)
    if buckets == 1:
        refs = [ray.put(gather(index, units_of))]
    else:
        refs = _on_cluster(index, units_of, buckets)
    return KnownRefs(tuple(refs), ray.put(index.part_paths))


def buckets_for(documents: int) -> int:
    """A power of two, chosen so that a bucket holds about BUCKET_DOCUMENTS documents at most."""
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
        """Connect to the cluster; refuse a local index on a cluster of several machines."""
        with ray_session(self._config, verbose=verbose):
            refuse_local_index(store)
            yield

    def share(self, index: Index, numbering: Numbering) -> Callable[[], KnownDocuments]:
        """The documents, in the object store."""
        return put_known(index, numbering.of_run).get

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
