"""Runs the encoder alone in its own process on the same token blocks, without Ray or output."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from actors.config import ModelConfig
from pipelines.config import RunConfig
from pipelines.passages.slices import Slice
from pipelines.run.engine import slice_reader
from pipelines.source import Source


def slices_of(config: RunConfig) -> Iterator[Slice]:
    """Yield the slices that reading tasks would make of the source."""
    source = Source(config.source)
    reader = slice_reader(config)
    for unit in source.units(source.list_files()):
        yield from reader.slices(unit)


def tokenise(config: RunConfig, path: Path) -> dict[str, Any]:
    """Write the encoder's input for all slices to a file; return seconds and sizes.

    The encoder gets equal passages of a slice once; `tokens` and `passages` count them once.
    """
    began = time.perf_counter()
    work = [*slices_of(config)]
    seconds = time.perf_counter() - began
    blocks = [_distinct(piece.passages) for piece in work]
    every_token = sum(int(piece.passages["n_tokens"].to_numpy().sum()) for piece in work)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, blocks[0].schema) as writer:
        for block in blocks:
            writer.write_batch(block.combine_chunks().to_batches()[0])
    return {
        "seconds": seconds,
        "slices": len(work),
        "passages": sum(block.num_rows for block in blocks),
        "tokens": sum(len(block["input_ids"].combine_chunks().flatten()) for block in blocks),
        "bytes_per_token": sum(piece.to_row().nbytes for piece in work) / every_token,
        "tokens_per_s": every_token / seconds,
    }


def _distinct(passages: pa.Table) -> pa.Table:
    hashes = passages["passage_hash"].to_pylist()
    firsts = {digest: row for row, digest in reversed(list(enumerate(hashes)))}
    return passages.select(["input_ids"]).take(pa.array(sorted(firsts.values())))


def encode(config: ModelConfig, path: Path, blocks: int | None = None) -> float:
    """Encode the blocks of a file, or the first `blocks` of them; return the seconds."""
    encoder = _load(config)
    with pa.memory_map(str(path)) as file:
        batches = pa.ipc.open_file(file)
        began = time.perf_counter()
        for number in range(blocks or batches.num_record_batches):
            for _ in encoder.stream(batches.get_batch(number)["input_ids"]):
                pass
        return time.perf_counter() - began


@functools.cache
def _load(config: ModelConfig) -> Any:
    from actors.encoder import load_encoder

    return load_encoder(config)


class Memory:
    """Peak private memory of the child processes, in bytes."""

    def __init__(self) -> None:
        self.encoder = self.reader = 0


@contextmanager
def watched_memory(seconds: float = 0.5) -> Iterator[Memory]:
    """Sample the memory of Ray's encoding and reading processes periodically."""
    memory, stop = Memory(), threading.Event()

    def look() -> None:
        while not stop.wait(seconds):
            for process in psutil.Process().children(recursive=True):
                try:
                    title = " ".join(process.cmdline())
                    if not title.startswith("ray::"):
                        continue
                    info = process.memory_info()
                except psutil.Error:
                    continue
                size = info.rss - info.shared
                if "MapWorker" in title:
                    memory.encoder = max(memory.encoder, size)
                else:
                    memory.reader = max(memory.reader, size)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        stop.set()
        thread.join()
