"""Live documents of an index, sorted by the hash of their ids, for comparison in re-indexing.

This module also defines duplicates: of several documents with one id, the first in corpus order
(unit, then position) keeps the id, and the others become rejects with code `duplicate_id`.

A document takes 48 bytes in plain arrays, which each node holds once in shared memory: 480 MB for
10 million documents. Larger indexes are divided into buckets by the first bits of the hash. An id
is represented by two 64-bit hashes: with a billion ids, the collision probability is 1e-21.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from pipelines.index.schemas import RejectCode

_KEYS = ("packvec document", "document, second")  # pandas requires 16 characters
NOT_READ_AS = -1
"""Sentinel unit number: this document's old location is read again or no longer exists."""

Where = Literal[
    "in the same slice", "in another slice", "in another file", "in a file that did not change"
]
"""The location of the document that keeps the id of a duplicate."""


def duplicate_of(where: Where) -> tuple[RejectCode, str]:
    """Return code and detail of a duplicate's reject."""
    return "duplicate_id", where


def id_hashes(ids: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return two uint64 hashes of each id (a string)."""
    values = ids.to_numpy(zero_copy_only=False).astype(object)
    first, second = (pd.util.hash_array(values, hash_key=key, categorize=False) for key in _KEYS)
    return first, second


def halves(hashes: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the two halves of each doc_hash (binary[16]) as uint64."""
    if isinstance(hashes, pa.ChunkedArray):
        hashes = hashes.combine_chunks()
    data = np.frombuffer(hashes.buffers()[1], np.uint8)
    start = hashes.offset * 16
    words = data[start : start + 16 * len(hashes)].view("<u8").reshape(-1, 2)
    return words[:, 0], words[:, 1]


@dataclass(frozen=True)
class IdSet:
    """A set of ids, represented by two hashes each and sorted by the first."""

    ids: np.ndarray
    checks: np.ndarray

    @staticmethod
    def of(columns: Iterable[pa.ChunkedArray]) -> IdSet:
        """Make the set of all ids in these columns."""
        pairs = [id_hashes(column) for column in columns]
        if not pairs:
            return IdSet(np.zeros(0, np.uint64), np.zeros(0, np.uint64))
        ids, checks = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
        order = np.argsort(ids, kind="stable")
        return IdSet(ids[order], checks[order])

    def find(self, ids: np.ndarray, checks: np.ndarray) -> np.ndarray:
        """Return int64 [ids]: the index of each id in the set, -1 if it is absent."""
        found = np.full(len(ids), -1, np.int64)
        pending, at = np.arange(len(ids)), np.searchsorted(self.ids, ids)
        while len(pending):  # more than one pass only if first hashes collide
            inside = at < len(self.ids)
            pending, at = pending[inside], at[inside]
            same = self.ids[at] == ids[pending]
            pending, at = pending[same], at[same]
            right = self.checks[at] == checks[pending]
            found[pending[right]] = at[right]
            pending, at = pending[~right], at[~right] + 1
        return found


@dataclass(frozen=True)
class Bucket(IdSet):
    """Live documents whose id hashes are in one range; arrays [documents]."""

    hash_a: np.ndarray
    """uint64: the first half of doc_hash; `hash_b`: the second."""
    hash_b: np.ndarray
    part: np.ndarray
    """int32: index of the part that holds the document's rows; see `first_row` and `n_rows`."""
    first_row: np.ndarray
    n_rows: np.ndarray
    unit: np.ndarray
    """int32: the unit the document was last seen in, NOT_READ_AS if that unit is read again."""


@dataclass(frozen=True)
class Match:
    """The result of looking up documents in the index; arrays are parallel to the documents."""

    known: np.ndarray
    """bool: the index has the id."""
    same: np.ndarray
    """bool: the index has the id with the same doc_hash."""
    unit: np.ndarray
    part: np.ndarray
    first_row: np.ndarray
    n_rows: np.ndarray


class KnownDocuments:
    """All live documents of an index: the buckets, and the paths of the parts."""

    def __init__(self, buckets: Sequence[Bucket], parts: Sequence[str]) -> None:
        """`buckets`: their number is a power of two."""
        self.buckets, self.parts = buckets, parts

    def __len__(self) -> int:
        return sum(len(bucket.ids) for bucket in self.buckets)

    def look_up(
        self, doc_ids: pa.ChunkedArray | pa.Array, hashes: pa.ChunkedArray | pa.Array
    ) -> Match:
        """Look up documents by their ids and compare their current doc_hash."""
        ids, checks = id_hashes(doc_ids)
        now_a, now_b = halves(hashes)
        n = len(ids)
        known, same = np.zeros(n, bool), np.zeros(n, bool)
        places = {name: np.full(n, -1, np.int32) for name in ("unit", "part", "first_row")}
        n_rows = np.zeros(n, np.int32)
        for number, rows in _split(ids, len(self.buckets)):
            bucket = self.buckets[number]
            at = bucket.find(ids[rows], checks[rows])
            rows, at = rows[at >= 0], at[at >= 0]
            known[rows] = True
            same[rows] = (bucket.hash_a[at] == now_a[rows]) & (bucket.hash_b[at] == now_b[rows])
            for name, values in places.items():
                values[rows] = getattr(bucket, name)[at]
            n_rows[rows] = bucket.n_rows[at]
        return Match(known, same, n_rows=n_rows, **places)


def _split(ids: np.ndarray, buckets: int) -> list[tuple[int, np.ndarray]]:
    """Return each bucket that occurs, with the rows that belong to it."""
    if buckets == 1:
        return [(0, np.arange(len(ids)))]
    number = bucket_of(ids, buckets)
    return [(int(b), np.flatnonzero(number == b)) for b in np.unique(number)]


def bucket_of(ids: np.ndarray, buckets: int) -> np.ndarray:
    """Return the bucket of each hash; `buckets`: a power of two."""
    bits = buckets.bit_length() - 1
    if not bits:
        return np.zeros(len(ids), np.int64)
    return (ids >> np.uint64(64 - bits)).astype(np.int64)
