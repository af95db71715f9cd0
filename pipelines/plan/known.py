"""What an index holds, for re-indexing to compare with: live documents, sorted by hashes of ids.

The rule of duplicates is here too: of documents with one id, the first in corpus order (unit, then
position) keeps it, and the others become rejects `duplicate_id`.

Arrays only, 48 bytes a document, so that they lie in shared memory once a node and are read in
place: 10 million documents take 480 MB. Larger indexes are cut into buckets by the first bits of
the hash. Two 64-bit hashes of an id stand for it: of a billion ids, the chance that any two are
taken for one is 1e-21.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from pipelines.index.schemas import RejectCode

_KEYS = ("packvec document", "document, second")  # pandas wants 16 characters
NOT_READ_AS = -1
"""Sentinel unit number: this document's old location is read again or no longer exists."""

Where = Literal[
    "in the same slice", "in another slice", "in another file", "in a file that did not change"
]
"""Where the document is that keeps the id of a duplicate."""


def duplicate_of(where: Where) -> tuple[RejectCode, str]:
    """Code and detail of the reject that a duplicate becomes."""
    return "duplicate_id", where


def id_hashes(ids: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Two uint64 hashes of each id (a string)."""
    values = ids.to_numpy(zero_copy_only=False).astype(object)
    first, second = (pd.util.hash_array(values, hash_key=key, categorize=False) for key in _KEYS)
    return first, second


def halves(hashes: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The two halves of each doc_hash (binary[16])."""
    if isinstance(hashes, pa.ChunkedArray):
        hashes = hashes.combine_chunks()
    data = np.frombuffer(hashes.buffers()[1], np.uint8)
    start = hashes.offset * 16
    words = data[start : start + 16 * len(hashes)].view("<u8").reshape(-1, 2)
    return words[:, 0], words[:, 1]


@dataclass(frozen=True)
class IdSet:
    """Ids by their hashes, sorted by the first."""

    ids: np.ndarray
    checks: np.ndarray

    @staticmethod
    def of(columns: Iterable[pa.ChunkedArray]) -> IdSet:
        """The ids in these columns."""
        pairs = [id_hashes(column) for column in columns]
        if not pairs:
            return IdSet(np.zeros(0, np.uint64), np.zeros(0, np.uint64))
        ids, checks = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
        order = np.argsort(ids, kind="stable")
        return IdSet(ids[order], checks[order])

    def find(self, ids: np.ndarray, checks: np.ndarray) -> np.ndarray:
        """int64: where each of these is, -1 where it is not."""
        found = np.full(len(ids), -1, np.int64)
        pending, at = np.arange(len(ids)), np.searchsorted(self.ids, ids)
        while len(pending):  # once, but where first hashes are equal by chance
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
    """Live documents whose ids hash into one range; one row each."""

    hash_a: np.ndarray
    """uint64: the first half of doc_hash; `hash_b`: the second."""
    hash_b: np.ndarray
    part: np.ndarray
    """int32: which of the index's parts has its rows; with `first_row` and `n_rows`."""
    first_row: np.ndarray
    n_rows: np.ndarray
    unit: np.ndarray
    """int32: the unit it was last seen in, if that is not read again; else NOT_READ_AS."""


@dataclass(frozen=True)
class Match:
    """What is known of each of some documents; arrays are parallel to them."""

    known: np.ndarray
    """bool: the index has the id."""
    same: np.ndarray
    """bool: and with the same doc_hash."""
    unit: np.ndarray
    part: np.ndarray
    first_row: np.ndarray
    n_rows: np.ndarray


class KnownDocuments:
    """All buckets, and the names of parts."""

    def __init__(self, buckets: Sequence[Bucket], parts: Sequence[str]) -> None:
        """`buckets`: a power of two of them."""
        self.buckets, self.parts = buckets, parts

    def __len__(self) -> int:
        return sum(len(bucket.ids) for bucket in self.buckets)

    def look_up(
        self, doc_ids: pa.ChunkedArray | pa.Array, hashes: pa.ChunkedArray | pa.Array
    ) -> Match:
        """What the index has of documents: their ids, and their doc_hash now."""
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
    """(bucket, rows that belong to it)."""
    if buckets == 1:
        return [(0, np.arange(len(ids)))]
    number = bucket_of(ids, buckets)
    return [(int(b), np.flatnonzero(number == b)) for b in np.unique(number)]


def bucket_of(ids: np.ndarray, buckets: int) -> np.ndarray:
    """The bucket of each hash; `buckets`: a power of two."""
    bits = buckets.bit_length() - 1
    if not bits:
        return np.zeros(len(ids), np.int64)
    return (ids >> np.uint64(64 - bits)).astype(np.int64)
