"""Computes the numbers of a run's charts: speed, time per actor, lengths, cost of padding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.index.reader import Index
from pipelines.index.records import Done, Manifest
from pipelines.store.store import Store

_SAMPLED_PARTS = 64
_READERS = 16
_SHORTEST = 1e-3  # done records have times in milliseconds
_BINS = (12, 72)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ActorTime:
    """The time of one actor by activity, in seconds."""

    worker: str
    """The process, as host:pid."""
    device: str
    slices: int
    tokens: int
    """The number of encoded tokens."""
    span: float
    """The time from the start of the first slice to the end of the last one."""
    under_way: float
    """The sum of the durations of its slices, which overlap."""
    encode: float
    write: float
    upload: float

    @property
    def busy(self) -> float:
        """The share of `span` in which the encoder worked."""
        return self.encode / max(self.span, _SHORTEST)

    @property
    def wait(self) -> float:
        """The rest of `under_way`, mostly spent waiting for the encoder."""
        return max(self.under_way - self.encode - self.write - self.upload, 0.0)


@dataclass(frozen=True)
class Throughput:
    """Encoded tokens per second over a run; the tokens of a slice are spread over its duration."""

    edges: Floats
    """[bins + 1] edges of the bins in seconds since the first slice began."""
    kept: Floats
    """[bins] tokens per second of slices that earlier attempts finished."""
    new: Floats
    """[bins] tokens per second of the last attempt."""
    resumed: float | None
    """The start of the last attempt in seconds, or None if it was the only one. Before it, time
    without a slice in progress is left out."""


@dataclass(frozen=True)
class Lengths:
    """The lengths of passages."""

    tokens: NDArray[np.int64]
    """[passages] tokens of each passage, in the order of the input."""
    parts: int
    """The number of parts that were read, of `of_parts`."""
    of_parts: int

    @property
    def is_sample(self) -> bool:
        """Whether only some of the parts were read."""
        return self.parts < self.of_parts


def split_tries(done: Sequence[Done], new: int) -> tuple[list[Done], list[Done]]:
    """Split done records into those of earlier attempts and the `new` latest of the last attempt.

    Records without times are left out.
    """
    timed = sorted((d for d in done if d.times), key=lambda d: d.times.ended if d.times else 0)
    at = max(len(timed) - new, 0)
    return timed[:at], timed[at:]


def actor_times(done: Sequence[Done]) -> list[ActorTime]:
    """Return the time of each actor, sorted by start; [] if no record has times."""
    slices: dict[str, list[Done]] = defaultdict(list)
    for record in done:
        if record.times:
            slices[record.encoder.worker].append(record)
    found = {}
    for worker, records in slices.items():
        times = [record.times for record in records if record.times]
        began = min(t.began for t in times)
        found[began, worker] = ActorTime(
            worker=worker,
            device=records[0].encoder.device,
            slices=len(records),
            tokens=sum(record.encoded_tokens for record in records),
            span=max(t.ended for t in times) - began,
            under_way=sum(t.ended - t.began for t in times),
            encode=sum(t.encode for t in times),
            write=sum(t.write for t in times),
            upload=sum(t.upload for t in times),
        )
    return [found[key] for key in sorted(found)]


def utilisation(done: Sequence[Done]) -> float | None:
    """Return the share of time in which the encoders worked; None if no record has times.

    The time of an actor lasts from the start of its first slice to the end of its last one. Loading
    the model, and waiting for the last slices of other actors, do not count.
    """
    actors = actor_times(done)
    spans = sum(actor.span for actor in actors)
    return round(sum(actor.encode for actor in actors) / spans, 4) if spans > 0 else None


def speed_over_time(kept: Sequence[Done], new: Sequence[Done]) -> Throughput | None:
    """Return the throughput from the records of `split_tries`; None without records."""
    records = [*kept, *new]
    times = [record.times for record in records if record.times]
    if not times:
        return None
    began = np.array([t.began for t in times])
    ended = np.maximum([t.ended for t in times], began + _SHORTEST)
    is_new = np.arange(len(times)) >= len(kept)
    start = float(began[is_new].min()) if new else np.inf
    began, ended, start = _without_gaps(began, ended, start)
    rate = np.array([record.encoded_tokens for record in records]) / (ended - began)
    edges = np.linspace(0.0, ended.max(), int(np.clip(2 * len(times), *_BINS)) + 1)

    def binned(mine: NDArray[np.bool_]) -> Floats:
        first, seconds, speed = began[mine], (ended - began)[mine], rate[mine]
        done = [float((speed * np.clip(edge - first, 0.0, seconds)).sum()) for edge in edges]
        return np.diff(done) / np.diff(edges)

    return Throughput(edges, binned(~is_new), binned(is_new), start if kept and new else None)


def _without_gaps(began: Floats, ended: Floats, start: float) -> tuple[Floats, Floats, float]:
    """Return times relative to the first, without gaps before `start` in which no slice ran."""
    order = np.argsort(began, kind="stable")
    first, last = began[order], np.maximum.accumulate(ended[order])
    gaps = np.where(first[1:] <= start, np.maximum(first[1:] - last[:-1], 0.0), 0.0)
    less = np.empty_like(began)
    less[order] = first[0] + np.concatenate([[0.0], np.cumsum(gaps)])
    return began - less, ended - less, start - first[0] - float(gaps.sum())


def spread(count: int, some: int) -> NDArray[np.int64]:
    """Return `some` evenly spread positions of `count`; all positions if there are fewer."""
    return np.linspace(0, max(count - 1, 0), min(some, count)).round().astype(np.int64)


def read_lengths(store: Store, manifest: Manifest) -> Lengths:
    """Read the lengths of a generation's own passages: one column of at most 64 of its parts."""
    paths = Index(store, [manifest]).part_paths
    some = [paths[i] for i in spread(len(paths), _SAMPLED_PARTS)]

    def read(path: str) -> pa.ChunkedArray:
        with store.open_input(path) as file:
            return pq.ParquetFile(file, pre_buffer=True).read(columns=["n_tokens"])["n_tokens"]

    with ThreadPoolExecutor(_READERS) as pool:
        arrays = [np.asarray(column.to_numpy(), dtype=np.int64) for column in pool.map(read, some)]
    tokens = np.concatenate(arrays) if arrays else np.zeros(0, np.int64)
    return Lengths(tokens, len(some), len(paths))


def padded_tokens(tokens: NDArray[np.int64], batch: int, *, by_length: bool) -> int:
    """Return the tokens computed in batches of `batch` passages, each padded to its longest."""
    if by_length:
        tokens = np.sort(tokens)
    starts = np.arange(0, len(tokens), batch)
    sizes = np.diff(starts, append=len(tokens))
    return int((np.maximum.reduceat(tokens, starts) * sizes).sum())
