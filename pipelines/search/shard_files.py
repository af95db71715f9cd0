"""Cache the live rows of parts as local Arrow files, which processes map into memory.

    files = ShardFiles(index, parts, folder)
    files.open(["dense"])    # {"dense": pyarrow.Table}, one chunk per block

Parquet cannot be mapped. Rows are therefore decoded once, when a generation is first searched on a
machine. Each output has its own file, so that a dense search never reads ColBERT vectors.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from actors.config import OUTPUTS, Output
from actors.errors import StorageError
from pipelines.index.parts import Part
from pipelines.index.reader import Index

_ROWS = 8_192
_TOKENS = 262_144  # per block, which is written at once: 512 MB of ColBERT at 1,024 dimensions


def in_blocks(
    tables: Iterable[pa.Table], rows: int = _ROWS, tokens: int = _TOKENS
) -> Iterator[pa.RecordBatch]:
    """Cut rows with `doc_id` and `n_tokens` into blocks at document boundaries.

    A block has at most `rows` rows and `tokens` tokens. A larger document is a block of its own.
    """
    waiting: list[pa.Table] = []
    for table in tables:
        if table.num_rows:
            waiting.append(table)
            table = pa.concat_tables(waiting)
            *stops, end = _stops(table, rows, tokens)
            for start, stop in zip([0, *stops], stops, strict=False):
                yield _one_batch(table.slice(start, stop - start))
            waiting = [table.slice(stops[-1] if stops else 0, end)]
    if waiting:
        yield _one_batch(pa.concat_tables(waiting))


def _stops(table: pa.Table, rows: int, tokens: int) -> list[int]:
    """Return the end of each block. The last block may continue in the next table."""
    ids = table["doc_id"].combine_chunks()
    changes = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    ends = np.append(np.flatnonzero(changes) + 1, len(ids))
    before = np.concatenate([[0], np.cumsum(table["n_tokens"].to_numpy())])
    stops, start = [], 0
    while start < len(ids):
        limit = np.searchsorted(before, before[start] + tokens, side="right") - 1
        at = np.searchsorted(ends, min(start + rows, limit), side="right") - 1
        first = np.searchsorted(ends, start, side="right")
        start = int(ends[max(at, first)])
        stops.append(start)
    return stops


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    """Return a table as one batch, because an Arrow file is mapped batch by batch."""
    return table.combine_chunks().to_batches()[0]


_LAYOUT = 1
ROWS = "rows"
"""The file of all columns except vectors."""
_NOT_SHOWN = ("passage_hash", *OUTPUTS)
_CUT_BY = ("doc_id", "n_tokens")
_FORGET_SECONDS = 24 * 3600


@dataclass(frozen=True, kw_only=True)
class ShardRequest:
    """The description of a shard: its rows, its outputs and where it keeps files."""

    uri: str
    storage_options: dict[str, Any] = field(default_factory=dict, repr=False)
    generation: int
    number: int
    shards: int
    """The requested number of shards. There are fewer if the index has fewer parts."""
    outputs: tuple[Output, ...]
    folder: str | None = None
    """The folder of mapped files on the shard's machine; None for the default cache."""
    threads: int | None = None
    """The number of threads for scoring; None for torch's default."""


class ShardFiles:
    """The local files of one shard of one generation."""

    def __init__(self, index: Index, parts: Sequence[Part], folder: Path) -> None:
        """`parts`: parts of the index, in its order."""
        self._index, self._parts = index, parts
        own = hashlib.sha256(index.store.uri.encode()).hexdigest()[:16]
        state = [
            _LAYOUT,
            [(m.run_id, m.tables.parts.sha256, m.tables.deletions.sha256) for m in index.chain],
            [part.path for part in parts],
        ]
        name = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]
        self._generation = folder / own / f"{index.info.generation:06d}"
        self._folder = self._generation / name

    def open(self, names: Sequence[str]) -> dict[str, pa.Table]:
        """Return a mapped table for each name, ROWS or an output, with the same rows and chunks.

        Raises:
            StorageError: the disk is full or read-only, or a part is missing.
        """
        with suppress(OSError):  # a read-only disk is enough if the files exist
            os.utime(self._generation)
        found = self._mapped(names)
        if len(found) == len(names):
            return found
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self._folder / ".lock"):
                found = self._mapped(names)  # another process may have written them meanwhile
                if missing := [name for name in names if name not in found]:
                    self._write(missing)
                    self._forget_old_generations()
        except OSError as error:
            self._check_parts()
            raise StorageError(
                f"search.folder: expected a writable folder for vectors at {self._folder}, found "
                f"{error.strerror or error}.",
                "Free space, or choose another folder: --set search.folder=..., or XDG_CACHE_HOME.",
            ) from error
        return self._mapped(names)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.arrow"

    def _mapped(self, names: Sequence[str]) -> dict[str, pa.Table]:
        """Map the existing files, except those whose writer died before it finished them."""
        found = {}
        for name in names:
            with (
                suppress(FileNotFoundError, NotADirectoryError, pa.ArrowInvalid),
                pa.ipc.open_file(pa.memory_map(str(self._path(name)))) as file,
            ):
                found[name] = file.read_all()
        return found

    def _write(self, names: Sequence[str]) -> None:
        schema = self._index.schema
        kept = {
            name: [c for c in schema.names if c not in _NOT_SHOWN] if name == ROWS else [name]
            for name in names
        }
        columns = sorted({*_CUT_BY, *(c for group in kept.values() for c in group)})
        making = {name: self._path(name).with_suffix(".making") for name in names}
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(
                    pa.ipc.new_file(
                        str(path), pa.schema([schema.field(column) for column in kept[name]])
                    )
                )
                for name, path in making.items()
            }
            live = (self._index.live_rows(part, columns) for part in self._parts)
            for block in in_blocks(chain.from_iterable(live)):
                for name, writer in writers.items():
                    writer.write_batch(block.select(kept[name]))
        for name, path in making.items():
            with path.open("rb") as file:
                os.fsync(file.fileno())  # the content must be durable before the final name is
            path.replace(self._path(name))

    def _check_parts(self) -> None:
        """Raise if the error came from a missing part, and not from the local folder."""
        store = self._index.store
        for path in (part.path for part in self._index.parts):
            if not store.exists(path):
                raise StorageError(
                    f"{store.url(path)}: expected a part of the index, found none.",
                    "List all missing files with python -m pipelines.verify_index.",
                )

    def _forget_old_generations(self) -> None:
        """Delete generations unused for a day. A process that has mapped a file keeps it."""
        for other in self._generation.parent.iterdir():
            age = time.time() - other.stat().st_mtime
            if other != self._generation and age > _FORGET_SECONDS:
                shutil.rmtree(other, ignore_errors=True)


def shards_of(parts: Sequence[Part], shards: int) -> list[list[Part]]:
    """Divide the parts with live rows into at most `shards` groups of about equally many rows."""
    live = [(part, sum(stop - first for first, stop in part.live)) for part in parts]
    live = [(part, rows) for part, rows in live if rows]
    total, found, seen = sum(rows for _, rows in live), [list[Part]() for _ in range(shards)], 0
    for part, rows in live:
        # The middle of the part decides, so that no shard systematically gets the remainders.
        found[min(int((seen + rows / 2) * shards / total), shards - 1)].append(part)
        seen += rows
    return [shard for shard in found if shard] or [[]]
