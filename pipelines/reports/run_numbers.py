"""What there is to draw of a run: speed over time, where time went, lengths, what padding costs."""

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
_SHORTEST = 1e-3  # clocks of records count milliseconds
_BINS = (12, 72)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ActorTime:
    """Where one actor's time went; seconds."""

    worker: str
    """host:pid."""
    device: str
    slices: int
    tokens: int
    """Those that it encoded."""
    span: float
    """From the beginning of its first slice to the end of its last one."""
    under_way: float
    """Sum over its slices, which overlap, from the beginning to the end of each."""
    encode: float
    write: float
    upload: float

    @property
    def busy(self) -> float:
        """Share of `span` in which its encoder had work."""
        return self.encode / max(self.span, _SHORTEST)

    @property
    def wait(self) -> float:
        """Of `under_way`, what is none of the others: for a turn at the encoder, above all."""
        return max(self.under_way - self.encode - self.write - self.upload, 0.0)


@dataclass(frozen=True)
class Throughput:
    """Encoded tokens a second over a run, each slice's spread over the time it was under way."""

    edges: Floats
    """[bins + 1] seconds since the first slice began."""
    kept: Floats
    """[bins] of slices that an earlier try of the run had finished."""
    new: Floats
    """[bins] of the others."""
    resumed: float | None
    """When the last try began, where there was an earlier one; before it, time in which no slice
    was under way is left out."""


@dataclass(frozen=True)
class Lengths:
    """How long passages are."""

    tokens: NDArray[np.int64]
    """[passages] in the order of the parts, which is the input's."""
    parts: int
    """Parts that were read."""
    of_parts: int

    @property
    def is_sample(self) -> bool:
        """Whether there are parts that were not read."""
        return self.parts < self.of_parts


def split_tries(done: Sequence[Done], new: int) -> tuple[list[Done], list[Done]]:
    """Records of earlier tries, and the `new` ones of the last: those that were finished last.

    Records that do not say when they were made are left out.
    """
    timed = sorted((d for d in done if d.times), key=lambda d: d.times.ended if d.times else 0)
    at = max(len(timed) - new, 0)
    return timed[:at], timed[at:]


def actor_times(done: Sequence[Done]) -> list[ActorTime]:
    """Where time went, by actor, those that began first first; [] where no record tells."""
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
    """Share of the time in which the encoders had work; None where no record tells.

    The time of each actor is from the beginning of its first slice to the end of its last one:
    loading the model, and waiting for other actors' last slices, do not count.
    """
    actors = actor_times(done)
    spans = sum(actor.span for actor in actors)
    return round(sum(actor.encode for actor in actors) / spans, 4) if spans > 0 else None


def speed_over_time(kept: Sequence[Done], new: Sequence[Done]) -> Throughput | None:
    """Of records of `split_tries`; None where there is none."""
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
    """Times since the first, less those up to `start` in which nothing was under way."""
    order = np.argsort(began, kind="stable")
    first, last = began[order], np.maximum.accumulate(ended[order])
    gaps = np.where(first[1:] <= start, np.maximum(first[1:] - last[:-1], 0.0), 0.0)
    less = np.empty_like(began)
    less[order] = first[0] + np.concatenate([[0.0], np.cumsum(gaps)])
    return began - less, ended - less, start - first[0] - float(gaps.sum())


def spread(count: int, some: int) -> NDArray[np.int64]:
    """Places of `some` of `count`, evenly spread; all where there are fewer."""
    return np.linspace(0, max(count - 1, 0), min(some, count)).round().astype(np.int64)


def read_lengths(store: Store, manifest: Manifest) -> Lengths:
    """Of the passages that a generation wrote: one column of its parts, of some where many are."""
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
    """What batches of so many passages compute, each padded to its longest one."""
    if by_length:
        tokens = np.sort(tokens)
    starts = np.arange(0, len(tokens), batch)
    sizes = np.diff(starts, append=len(tokens))
    return int((np.maximum.reduceat(tokens, starts) * sizes).sum())
