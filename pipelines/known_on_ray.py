"""What the live generation holds, put into the cluster's shared memory for reading tasks.

Up to BUCKET_DOCUMENTS documents the driver gathers them itself. Of more, tasks read the ledgers and
split what they find into buckets, and one task a bucket resolves it: the driver holds none of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from pipelines.duplicates import read_columns
from pipelines.index import Index
from pipelines.inventory import Numbering
from pipelines.known_documents import Bucket, KnownDocuments, Mentions, resolve
from pipelines.storage import Store, open_store

BUCKET_DOCUMENTS = 10_000_000
_FILES_IN_TASK = 64
_THREADS = 16
_COLUMNS = {
    "ledger": ["doc_id", "doc_hash", "unit", "part", "first_row", "n_rows"],
    "unchanged": ["doc_id", "unit"],
}


@dataclass(frozen=True)
class KnownRefs:
    """Known documents in the object store."""

    buckets: tuple[ray.ObjectRef[Bucket], ...]
    parts: ray.ObjectRef[list[str]]

    def get(self) -> KnownDocuments:
        """Them, read in place; beside a bucket's arrays nothing is copied."""
        return KnownDocuments(ray.get(list(self.buckets)), ray.get(self.parts))


@dataclass(frozen=True)
class _Job:
    """A file that says something of documents."""

    kind: str
    path: str
    generation: int
    units: np.ndarray = field(repr=False)


def put_known(index: Index, numbering: Numbering, storage_options: Mapping[str, Any]) -> KnownRefs:
    """The live documents of an index, with the units they have in the plan that is made."""
    counts, store, parts = index.info.counts, index.store, index.part_paths
    documents = counts.documents + counts.unchanged
    buckets = 1 << max(-(-documents // BUCKET_DOCUMENTS) - 1, 0).bit_length()
    mentions = Mentions(parts, buckets)
    deleted = [mentions.of_deletions(t, m.generation) for m, t in index.deletions()]
    jobs = list(_jobs(index, numbering))
    if buckets == 1:
        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(lambda job: _read(store, mentions, job), jobs))
        refs = [ray.put(resolve(rows[0] for rows in [*deleted, *found]))]
        return KnownRefs(tuple(refs), ray.put(parts))
    return KnownRefs(
        tuple(_on_cluster(store, storage_options, jobs, deleted, parts, buckets)), ray.put(parts)
    )


def _jobs(index: Index, numbering: Numbering) -> Iterator[_Job]:
    units: dict[str, np.ndarray] = {}
    for kind, files in (("ledger", index.ledgers()), ("unchanged", index.unchanged())):
        for manifest, path in files:
            run_id = manifest.run_id
            if run_id not in units:
                units[run_id] = numbering.of_run(run_id)
            yield _Job(kind, path, manifest.generation, units[run_id])


def _read(store: Store, mentions: Mentions, job: _Job) -> list[np.ndarray]:
    table: pa.Table = read_columns(store, job.path, _COLUMNS[job.kind])
    of = mentions.of_ledger if job.kind == "ledger" else mentions.of_unchanged
    return of(table, job.generation, job.units)


def _on_cluster(
    store: Store,
    storage_options: Mapping[str, Any],
    jobs: Sequence[_Job],
    deleted: Sequence[Sequence[np.ndarray]],
    parts: Sequence[str],
    buckets: int,
) -> list[ray.ObjectRef[Bucket]]:
    read = ray.remote(num_cpus=1, num_returns=buckets)(_read_all)
    merge = ray.remote(num_cpus=1)(_merge)
    left, found, shared = iter(jobs), [], ray.put(list(parts))
    while group := list(islice(left, _FILES_IN_TASK)):
        found.append(read.remote(store.uri, dict(storage_options), group, shared, buckets))
    found += [[ray.put(rows) for rows in each] for each in deleted]
    return [merge.remote(*(rows[bucket] for rows in found)) for bucket in range(buckets)]


def _read_all(
    uri: str, storage_options: dict[str, Any], jobs: list[_Job], parts: list[str], buckets: int
) -> tuple[np.ndarray, ...]:
    store, mentions = open_store(uri, storage_options), Mentions(parts, buckets)
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda job: _read(store, mentions, job), jobs))
    return tuple(np.concatenate(rows) for rows in zip(*found, strict=True))


def _merge(*mentions: np.ndarray) -> Bucket:
    return resolve(mentions)
