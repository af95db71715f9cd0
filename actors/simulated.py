"""A simulated encoder: waits as long as a device would and returns vectors of the right sizes.

Use it to measure a pipeline without the devices. Imports torch only to read the shape of a ColBERT
head, so that many simulated encoders fit on one machine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from actors.config import ModelConfig, Output
from actors.encoded import EncodedBatch, EncoderInfo
from actors.fingerprint import fingerprint, space_parts
from actors.models.files import ModelFiles, resolve_model
from actors.network.micro_batches import micro_batches
from actors.vectors import fixed_size_lists, sparse_column, token_column

_BATCH_TOKENS = 16_384  # as on a GPU
_SPECIAL = 2  # special tokens of a passage, which have no sparse weight
_MADE_ROWS = 1_024


class SimulatedDevice:
    """A device of a given speed that processes one batch at a time by waiting."""

    def __init__(
        self,
        tokens_per_second: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._speed, self._clock, self._sleep = tokens_per_second, clock, sleep
        self._late = 0.0
        """Seconds by which the last sleep was too long; the next one is shortened by them."""
        self._lock = threading.Lock()

    @contextmanager
    def held(self, tokens: int) -> Iterator[None]:
        """Hold the device and make the body last as long as `tokens` need, or longer."""
        with self._lock:
            due = self._clock() + tokens / self._speed - self._late
            yield
            if (left := due - self._clock()) > 0:
                self._sleep(left)
            self._late = max(self._clock() - due, 0.0)


class SimulatedEncoder:
    """A `TokenEncoder` without a model. Threads may share it."""

    def __init__(self, config: ModelConfig, files: ModelFiles, device: SimulatedDevice) -> None:
        hidden, most = int(files.config["hidden_size"]), config.truncate_dim
        colbert_dim = _colbert_dim(files, hidden) if "colbert" in config.outputs else None
        self.info = EncoderInfo(
            name=config.name,
            revision=config.revision,
            dim=min(hidden, most or hidden),
            colbert_dim=colbert_dim and min(colbert_dim, most or colbert_dim),
            max_length=files.max_length,
            query_max_length=files.query_max_length,
            pooling=files.pooling,
            normalize=config.normalize,
            outputs=config.outputs,
            vector_dtype=config.vector_dtype,
            dtype="float16",
            device="simulated",
            space_fingerprint=fingerprint(space_parts(config, files)),
        )
        self.max_batch_tokens = config.max_batch_tokens or _BATCH_TOKENS
        self._device = device
        self._made: dict[int, np.ndarray] = {}
        self._random = np.random.default_rng(0)
        for dim in filter(None, (self.info.dim, self.info.colbert_dim)):
            rows = self._random.standard_normal((_MADE_ROWS, dim), dtype=np.float32)
            if config.normalize:
                rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            self._made[dim] = rows.astype(config.vector_dtype)

    def stream(
        self,
        input_ids: pa.ListArray | pa.ChunkedArray,
        outputs: Collection[Output] | None = None,
    ) -> Iterator[EncodedBatch]:
        """Yield batches as `Encoder.stream`, in the time the device would need; no row fails."""
        if isinstance(input_ids, pa.ChunkedArray):
            input_ids = input_ids.combine_chunks()
        offsets = input_ids.offsets.to_numpy(zero_copy_only=True)
        wanted = self.info.outputs if outputs is None else outputs
        for start, stop in micro_batches(offsets, self.max_batch_tokens):
            lengths = np.diff(offsets[start : stop + 1])
            with self._device.held(int(lengths.sum())):
                columns = self._columns(lengths, wanted)
            yield EncodedBatch(start, stop, columns, {})

    def empty(self) -> pa.Table:
        """Return the output columns with no rows."""
        return self._columns(np.zeros(0, np.int32), self.info.outputs)

    def _columns(self, lengths: np.ndarray, outputs: Collection[Output]) -> pa.Table:
        columns: dict[str, pa.Array] = {}
        if "dense" in outputs:
            columns["dense"] = fixed_size_lists(self._rows(len(lengths), self.info.dim))
        if "sparse" in outputs:
            columns["sparse"] = self._weights(np.maximum(lengths - _SPECIAL, 0))
        if "colbert" in outputs:
            assert self.info.colbert_dim, "__init__ has read the head"
            rows = self._rows(int((lengths - 1).sum()), self.info.colbert_dim)
            columns["colbert"] = token_column(lengths - 1, rows)
        return pa.table(columns)

    def _rows(self, count: int, dim: int) -> np.ndarray:
        """Return a view of `count` prepared rows, from a random position."""
        made = self._made[dim]
        if count > len(made):
            made = self._made[dim] = np.resize(made, (2 * count, dim))
        first = int(self._random.integers(len(made) - count + 1))
        return made[first : first + count]

    def _weights(self, counts: np.ndarray) -> pa.StructArray:
        """Return sparse vectors as if no token repeated, so larger than real ones."""
        total = int(counts.sum())
        firsts = np.cumsum(counts) - counts
        indices = np.arange(total, dtype=np.int32) - np.repeat(firsts, counts).astype(np.int32)
        return sparse_column(counts, indices, self._random.random(total, dtype=np.float32))


def load_simulated(config: ModelConfig) -> SimulatedEncoder:
    """Return a simulated encoder for the configuration; raise as `resolve_model`."""
    assert config.simulated_tokens_per_second, "the configuration sets a speed"
    device = SimulatedDevice(config.simulated_tokens_per_second)
    return SimulatedEncoder(config, resolve_model(config), device)


def _colbert_dim(files: ModelFiles, hidden: int) -> int:
    from actors.network.heads import load_head  # late: imports torch

    return load_head(files.heads["colbert"], hidden, out_features=None).out_features
