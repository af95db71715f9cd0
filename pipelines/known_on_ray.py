"""What the live generation holds, put into the cluster's shared memory for reading tasks.

Up to BUCKET_DOCUMENTS documents the driver gathers them itself. Of more, tasks read the ledgers and
split what they find into buckets, and one task a bucket resolves it: the driver holds none of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    "ledger": ["doc_id", "doc_hash", "unit", "position", "part", "first_row", "n_rows"],
    "unchanged": ["doc_id", "unit", "position"],
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
    counts = index.info.counts
    buckets = buckets_for(counts.documents + counts.unchanged)
    if buckets == 1:
        refs = [ray.put(gather(index, numbering))]
    else:
        refs = _on_cluster(index, numbering, storage_options, buckets)
    return KnownRefs(tuple(refs), ray.put(index.part_paths))


def buckets_for(documents: int) -> int:
    """A power of two, so that none has more than BUCKET_DOCUMENTS, or few more."""
    return 1 << max(-(-documents // BUCKET_DOCUMENTS) - 1, 0).bit_length()


def gather(index: Index, numbering: Numbering) -> Bucket:
    """All live documents in one bucket, by this process."""
    mentions = Mentions(index.part_paths, 1)
    deleted = (mentions.of_deletions(t, m.generation)[0] for m, t in index.deletions())
    with ThreadPoolExecutor(_THREADS) as pool:
        jobs = _jobs(index, numbering)
        found = list(pool.map(lambda job: _read(index.store, mentions, job)[0], jobs))
    return resolve([*deleted, *found])


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
    index: Index, numbering: Numbering, storage_options: Mapping[str, Any], buckets: int
) -> list[ray.ObjectRef[Bucket]]:
    read = ray.remote(num_cpus=1, num_returns=buckets)(_read_all)
    merge = ray.remote(num_cpus=1)(_merge)
    mentions, jobs = Mentions(index.part_paths, buckets), _jobs(index, numbering)
    deleted = [mentions.of_deletions(t, m.generation) for m, t in index.deletions()]
    found = [[ray.put(rows) for rows in each] for each in deleted]
    uri, shared = index.store.uri, ray.put(index.part_paths)
    while group := list(islice(jobs, _FILES_IN_TASK)):
        found.append(read.remote(uri, dict(storage_options), group, shared, buckets))
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
