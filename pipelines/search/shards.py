"""Divide an index into shards, and estimate from its manifests whether they fit into memory.

Runs before anything is loaded. Imports neither torch nor Ray.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.config import Output
from actors.errors import ConfigError
from pipelines.config.sections import SearchConfig
from pipelines.index.reader import Index
from pipelines.search.shard_files import ShardRequest, shards_of
from pipelines.terminal.text import byte_count

_VALUE_BYTES = {"float16": 2, "float32": 4}
# A sparse weight: id and value in the mapped file, row and value in the inverted index.
_WEIGHT_BYTES = 16
_WORKING_BYTES = 512 << 20  # the scores of a block, and the block as float32


@dataclass(frozen=True)
class Need:
    """The memory that the vectors of an index take, in bytes."""

    by_output: dict[Output, int]

    @property
    def bytes(self) -> int:
        """The sum, including working memory."""
        return sum(self.by_output.values()) + _WORKING_BYTES

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {byte_count(n)}" for name, n in self.by_output.items())
        return f"{byte_count(self.bytes)} ({parts}, working memory {byte_count(_WORKING_BYTES)})"


def needed(index: Index, outputs: Sequence[Output]) -> Need:
    """Return the memory for all live rows, assuming the average tokens per passage of the index."""
    info, rows = index.info, index.passages
    value = _VALUE_BYTES[info.vector_dtype]
    counted = sum(manifest.counts.passages for manifest in index.chain)
    tokens = rows * sum(manifest.counts.tokens for manifest in index.chain) // max(counted, 1)
    each = {
        "dense": rows * info.model.dim * value,
        "sparse": tokens * _WEIGHT_BYTES,  # an upper bound: a repeated token has one weight
        "colbert": tokens * (info.model.colbert_dim or 0) * value,
    }
    return Need({output: each[output] for output in outputs})


def free_bytes() -> int:
    """Return the memory that is still free on this machine or, if less, in its container."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and used.exists() and (most := limit.read_text().strip()) != "max":
        # Cached files count as used, but the kernel releases them on demand.
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, int(most) - int(used.read_text()) + int(stat.get("file", 0)))
    return free


def request(
    index: Index, outputs: Sequence[Output], search: SearchConfig, number: int, shards: int
) -> ShardRequest:
    """Return the request for shard `number` of `shards`."""
    return ShardRequest(
        uri=index.store.uri,
        storage_options=index.store.options,
        generation=index.info.generation,
        number=number,
        shards=shards,
        outputs=tuple(outputs),
        folder=search.folder,
    )


def n_shards(index: Index, wanted: int) -> int:
    """Return the number of shards, which is less than `wanted` if the index has fewer parts."""
    return len(shards_of(index.parts, wanted))


def check(index: Index, outputs: Sequence[Output], search: SearchConfig, machines: int) -> None:
    """Check that this machine can hold its share of the rows, which `machines` divide.

    With `search.candidates`, ColBERT vectors are only looked up and therefore not counted.

    Raises:
        ConfigError: memory is too small.
    """
    scanned = [output for output in outputs if output != "colbert" or not search.candidates]
    need, limit = needed(index, scanned), search.max_memory_bytes
    share = need.bytes / machines
    may_have = limit if limit is not None else free_bytes()
    if share > may_have:
        where = "this machine" if machines == 1 else f"each of {machines} machines"
        what = "search.max_memory_bytes allows" if limit is not None else "is free"
        raise ConfigError(
            f"{index.store.uri}: expected {byte_count(share)} of memory on {where} to search it, "
            f"found {byte_count(may_have)}, which {what}; the whole index takes {need}.",
            "Search fewer outputs (--mode dense), set search.candidates so that ColBERT is only "
            "looked up, or use more machines (ray.address, search.shards).",
        )


def cpus_of(search: SearchConfig) -> int:
    """Return the CPUs per shard. The default is half of a machine's; the rest encodes and reads."""
    return search.cpus_per_shard or max((os.cpu_count() or 1) // 2, 1)
