"""How an index is spread over shards, and whether their vectors fit the memory there is.

Estimated from manifests, before anything is loaded. Loads neither torch nor Ray.
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
# A weight is an id and a value in the mapped file, a row and a value in the inverted index.
_WEIGHT_BYTES = 16
_WORKING_BYTES = 512 << 20  # scores of a block, a block as float32


@dataclass(frozen=True)
class Need:
    """Bytes of vectors."""

    by_output: dict[Output, int]

    @property
    def bytes(self) -> int:
        """All of them, and room to work."""
        return sum(self.by_output.values()) + _WORKING_BYTES

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {byte_count(n)}" for name, n in self.by_output.items())
        return f"{byte_count(self.bytes)} ({parts}, working memory {byte_count(_WORKING_BYTES)})"


def needed(index: Index, outputs: Sequence[Output]) -> Need:
    """For all live rows; tokens as many a passage as the generations have on average."""
    info, rows = index.info, index.passages
    value = _VALUE_BYTES[info.vector_dtype]
    counted = sum(manifest.counts.passages for manifest in index.chain)
    tokens = rows * sum(manifest.counts.tokens for manifest in index.chain) // max(counted, 1)
    each = {
        "dense": rows * info.model.dim * value,
        "sparse": tokens * _WEIGHT_BYTES,  # at most: a token counts once a passage
        "colbert": tokens * (info.model.colbert_dim or 0) * value,
    }
    return Need({output: each[output] for output in outputs})


def free_bytes() -> int:
    """Memory a process may still take here: the machine's, or its container's if that is less."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and used.exists() and (most := limit.read_text().strip()) != "max":
        # Files that are cached count as used there, and are given up when memory is asked for.
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, int(most) - int(used.read_text()) + int(stat.get("file", 0)))
    return free


def request(
    index: Index, outputs: Sequence[Output], search: SearchConfig, number: int, shards: int
) -> ShardRequest:
    """What shard `number` of so many is told."""
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
    """How many shards there will be: an index of few parts makes fewer."""
    return len(shards_of(index.parts, wanted))


def check(index: Index, outputs: Sequence[Output], search: SearchConfig, machines: int) -> None:
    """Refuse what this machine, one of `machines` that share the rows, cannot hold.

    ColBERT vectors of candidates are only looked up, and not counted.

    Raises:
        ConfigError: with both numbers.
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
            f"found {byte_count(may_have)}, which {what}; all of it takes {need}.",
            "Search fewer outputs (--mode dense), set search.candidates so that ColBERT is only "
            "looked up, or spread it over more machines (ray.address, search.shards).",
        )


def cpus_of(search: SearchConfig) -> int:
    """Half of a machine's: its other half encodes queries, and reads."""
    return search.cpus_per_shard or max((os.cpu_count() or 1) // 2, 1)
