"""An encoder that computes nothing: it takes the time, and gives vectors of the right sizes.

For measuring what is around an encoder, on machines that have no device of that speed. Knows no
torch (but to read the shape of a ColBERT head), so that many fit one machine.
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
_SPECIAL = 2  # tokens around a passage, which have no sparse weight
_MADE_ROWS = 1_024


class SimulatedDevice:
    """Is busy for as long as a device of some speed would be, with one batch at a time."""

    def __init__(
        self,
        tokens_per_second: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._speed, self._clock, self._sleep = tokens_per_second, clock, sleep
        self._late = 0.0
        """Seconds that sleeps so far have lasted too long: the next one is shorter by them."""
        self._lock = threading.Lock()

    @contextmanager
    def held(self, tokens: int) -> Iterator[None]:
        """The body takes as long as so many tokens need, if it is not slower itself."""
        with self._lock:
            due = self._clock() + tokens / self._speed - self._late
            yield
            if (left := due - self._clock()) > 0:
                self._sleep(left)
            self._late = max(self._clock() - due, 0.0)


class SimulatedEncoder:
    """What `actors.encoder.Encoder` is to a pipeline, without a model. Safe to share."""

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
        """As `Encoder.stream`, in the time that the device would need; nothing ever fails."""
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
        """The output columns with no rows: their types."""
        return self._columns(np.zeros(0, np.int32), self.info.outputs)

    def _columns(self, lengths: np.ndarray, outputs: Collection[Output]) -> pa.Table:
        columns: dict[str, pa.Array] = {}
        if "dense" in outputs:
            columns["dense"] = fixed_size_lists(self._rows(len(lengths), self.info.dim))
        if "sparse" in outputs:
            columns["sparse"] = self._weights(np.maximum(lengths - _SPECIAL, 0))
        if "colbert" in outputs:
            assert self.info.colbert_dim, "the head was read"
            rows = self._rows(int((lengths - 1).sum()), self.info.colbert_dim)
            columns["colbert"] = token_column(lengths - 1, rows)
        return pa.table(columns)

    def _rows(self, count: int, dim: int) -> np.ndarray:
        """Rows that were made before, from some place on: nothing is copied."""
        made = self._made[dim]
        if count > len(made):
            made = self._made[dim] = np.resize(made, (2 * count, dim))
        first = int(self._random.integers(len(made) - count + 1))
        return made[first : first + count]

    def _weights(self, counts: np.ndarray) -> pa.StructArray:
        """As many as if no token came twice in a passage: more than real ones."""
        total = int(counts.sum())
        firsts = np.cumsum(counts) - counts
        indices = np.arange(total, dtype=np.int32) - np.repeat(firsts, counts).astype(np.int32)
        return sparse_column(counts, indices, self._random.random(total, dtype=np.float32))


def load_simulated(config: ModelConfig) -> SimulatedEncoder:
    """An encoder as fast as `config.simulated_tokens_per_second`.

    Raises:
        ModelError: not found, a head missing.
    """
    assert config.simulated_tokens_per_second, "the configuration asks for it"
    device = SimulatedDevice(config.simulated_tokens_per_second)
    return SimulatedEncoder(config, resolve_model(config), device)


def _colbert_dim(files: ModelFiles, hidden: int) -> int:
    from actors.network.heads import load_head  # late: this module is meant to do without torch

    return load_head(files.heads["colbert"], hidden, out_features=None).out_features
