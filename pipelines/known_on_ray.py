"""Puts the live documents of an index into the cluster's shared memory, for reading tasks.

Up to BUCKET_DOCUMENTS documents the driver gathers them itself. Beyond, tasks read the ledgers and
split what they find into buckets, and one task a bucket resolves it: the driver holds none of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import ray

from pipelines.index import Index
from pipelines.known_documents import Bucket, KnownDocuments
from pipelines.mentions import (
    MentionFile,
    Mentions,
    gather,
    mention_files,
    read_mentions,
    resolve,
)
from pipelines.storage import Store

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
    deleted = [mentions.of_deletions(t, m.generation) for m, t in index.deletions()]
    found = [[ray.put(rows) for rows in each] for each in deleted]
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
