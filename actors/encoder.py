"""The encoder: passages in, vectors out, as Arrow.

    encoder = load_encoder(ModelConfig(name="BAAI/bge-m3", outputs=("dense", "sparse", "colbert")))
    encoder.encode_passages(["Ray is a distributed engine."])     # pyarrow.Table, input order

Three phases: tokenise (CPU), forward (accelerator), Arrow columns (CPU). Only the forward holds the
device lock, so threads that share an encoder overlap their other phases with it.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from actors.backbone import (
    TORCH_DTYPES,
    load_backbone,
    resolve_device,
    resolve_dtype,
    run,
)
from actors.config import ModelConfig, Output
from actors.encoded import EncodedBatch, EncoderInfo
from actors.errors import DeviceError, EncodeError, ModelError
from actors.fingerprint import fingerprint, space_parts
from actors.heads import OutputHeads, Vectors, load_head, to_arrow
from actors.icl import query_tokenizer
from actors.model_files import ModelFiles, resolve_model
from actors.packing import next_stop, pack
from actors.tokenizer import TOKENS_COLUMN, TextTokenizer, TokenizedTexts
from actors.tokenizer_files import non_lexical_ids

__all__ = ["EncodedBatch", "Encoder", "EncoderInfo", "ModelConfig", "load_encoder"]


class _Work(NamedTuple):
    """Texts to encode: row i is values[offsets[i]:offsets[i + 1]]."""

    values: np.ndarray
    offsets: np.ndarray
    outputs: frozenset[Output]


class Encoder:
    """A loaded model; made by `load_encoder`. Safe to share between threads."""

    def __init__(
        self,
        *,
        config: ModelConfig,
        files: ModelFiles,
        backbone: torch.nn.Module,
        heads: OutputHeads,
        info: EncoderInfo,
    ) -> None:
        self.info = info
        self._backbone = backbone
        self._heads = heads
        self._device = torch.device(info.device)
        self._hidden_size = int(files.config["hidden_size"])
        self.vocab_size = int(files.config["vocab_size"])
        """Token ids are below this; a CUDA device does not survive another one."""
        self._family = files.family
        self._first_position = files.family.first_position(files.config)
        self.passage_tokenizer = TextTokenizer(
            files.folder, files.max_length, files.prompts.passage
        )
        self.query_tokenizer = query_tokenizer(files)
        self._non_lexical = np.array(sorted(non_lexical_ids(files.folder)), dtype=np.int32)
        self.max_batch_tokens = config.max_batch_tokens or (
            16_384 if self._device.type == "cuda" else 2_048
        )
        """Token budget of a forward pass; lower once the device has run out of memory."""
        self._device_lock = threading.Lock()

    def encode_passages(self, passages: Sequence[str] | pa.Table) -> pa.Table:
        """The output columns for texts, or for a token block (a table with `input_ids`).

        Raises:
            EncodeError: a passage whose vectors are not finite, or that the model cannot run.
        """
        if isinstance(passages, pa.Table):
            return self._encode(passages[TOKENS_COLUMN])
        return self._encode(self.passage_tokenizer.tokenize(_texts(passages)).to_arrow())

    def encode_queries(self, queries: Sequence[str]) -> pa.Table:
        """The output columns for queries: the model's query instruction and length apply."""
        return self._encode(self.tokenize_queries(queries).to_arrow())

    def tokenize_queries(self, queries: Sequence[str]) -> TokenizedTexts:
        """What `encode_queries` encodes: token ids, instruction and examples on, cut to length."""
        return self.query_tokenizer.tokenize(_texts(queries))

    def stream(
        self,
        input_ids: pa.ListArray | pa.ChunkedArray,
        outputs: Collection[Output] | None = None,
    ) -> Iterator[EncodedBatch]:
        """Encode a list<int32> column micro-batch by micro-batch, in input order.

        `outputs`: only these of the encoder's; all of them when not given. A forward that fails is
        bisected, so one bad passage spoils itself only: it comes back under `failures`. Running out
        of device memory also halves the token budget for good.

        Raises:
            DeviceError: the device failed for good, as CUDA does after a fault in a kernel.
        """
        if isinstance(input_ids, pa.ChunkedArray):
            input_ids = input_ids.combine_chunks()
        work = _Work(
            input_ids.values.to_numpy(zero_copy_only=True),
            input_ids.offsets.to_numpy(zero_copy_only=True),
            frozenset(self.info.outputs if outputs is None else outputs),
        )
        start = 0
        while start < len(work.offsets) - 1:
            stop = next_stop(work.offsets, start, self.max_batch_tokens)
            yield from self._encode_or_bisect(work, start, stop)
            start = stop

    def empty(self) -> pa.Table:
        """The output columns with no rows: their types."""
        none = np.zeros(0, dtype=np.int32)
        with torch.inference_mode():
            hidden_TH = torch.zeros(
                (1, self._hidden_size), dtype=TORCH_DTYPES[self.info.dtype], device=self._device
            )
            one = pack(
                np.zeros(1, np.int32), np.array([0, 1]), first_position=0, device=self._device
            )
            vectors = self._heads(hidden_TH, one, frozenset(self.info.outputs))
        row = to_arrow(vectors, np.zeros(1, np.int32), np.array([0, 1], np.int32), none)
        return row.slice(0, 0)

    def _encode(self, input_ids: pa.ListArray | pa.ChunkedArray) -> pa.Table:
        tables = [self.empty()]
        for batch in self.stream(input_ids):
            for row, reason in batch.failures.items():
                raise EncodeError(f"passage {row} cannot be encoded: {reason}")
            tables.append(batch.columns)
        return pa.concat_tables(tables).combine_chunks()

    def _encode_or_bisect(self, work: _Work, start: int, stop: int) -> Iterator[EncodedBatch]:
        try:
            encoded = self._encode_rows(work, start, stop)
        except torch.AcceleratorError as error:
            reason = " ".join(str(error).split())
            raise DeviceError(
                f"{self.info.device}: expected vectors, found {reason:.200}.",
                "Start the process again.",
            ) from error
        except (RuntimeError, IndexError) as error:  # what kernels raise; OutOfMemoryError is one
            if stop - start == 1:
                encoded = self.failed(start, f"{type(error).__name__}: {error!s:.200}")
            else:
                encoded = None
                if isinstance(error, torch.OutOfMemoryError):
                    half = int(work.offsets[stop] - work.offsets[start]) // 2
                    self.max_batch_tokens = max(min(self.max_batch_tokens, half), 1)
        # Outside the handler: the error's traceback would keep the failed forward's tensors alive.
        if encoded is not None:
            yield encoded
        else:
            middle = (start + stop) // 2
            yield from self._encode_or_bisect(work, start, middle)
            yield from self._encode_or_bisect(work, middle, stop)

    def failed(self, row: int, reason: str) -> EncodedBatch:
        """What `stream` gives for a row that cannot be encoded."""
        return EncodedBatch.failed(row, reason, self.empty())

    def _encode_rows(self, work: _Work, start: int, stop: int) -> EncodedBatch:
        values, rows = work.values, work.offsets[start : stop + 1]
        if (np.diff(rows) == 0).any():  # its first token would be its neighbour's
            raise RuntimeError("a passage without tokens")
        vectors = self._forward(values, rows, work.outputs)
        columns = to_arrow(
            vectors,
            values[rows[0] : rows[-1]],
            (rows - rows[0]).astype(np.int32),
            self._non_lexical,
        )
        bad = np.flatnonzero(~vectors.finite_N.cpu().numpy())
        failures = {start + int(row): "NaN or Inf in the vectors" for row in bad}
        return EncodedBatch(start, stop, columns, failures)

    @torch.inference_mode()
    def _forward(
        self, values: np.ndarray, offsets: np.ndarray, outputs: frozenset[Output]
    ) -> Vectors:
        packed = pack(values, offsets, first_position=self._first_position, device=self._device)
        with self._device_lock:
            return self._heads(run(self._backbone, self._family, packed), packed, outputs)


def _texts(texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str):  # a sequence too: of letters
        raise TypeError("expected a list of texts, got one text; write [text]")
    return texts


def load_encoder(config: ModelConfig) -> Encoder:
    """Load a model and its heads onto the device.

    Raises:
        ModelError: not found, a weight missing, a head of the wrong shape, no such device; or it
            is to be simulated, which only embed_corpus does.
    """
    if config.simulated_tokens_per_second is not None:
        raise ModelError(
            "model.simulated_tokens_per_second: expected a model that computes its vectors, got "
            "one that only takes the time it would need.",
            "Leave it out; an index that was made with it is of no use but to measure a cluster.",
        )
    files = resolve_model(config)
    device = resolve_device(config)
    dtype = resolve_dtype(config, device, files.record)
    compute = TORCH_DTYPES[dtype]
    rounded = compute if config.weights_dtype == "stored" else TORCH_DTYPES[config.weights_dtype]
    backbone = load_backbone(files, rounded, device).to(compute)
    hidden_size = int(files.config["hidden_size"])
    linears = {
        output: load_head(
            files.heads[output], hidden_size, out_features=1 if output == "sparse" else None
        )
        .to(device, rounded)
        .to(compute)
        for output in config.outputs
        if output in files.heads
    }

    def kept(dim: int) -> int:
        return min(config.truncate_dim or dim, dim)

    info = EncoderInfo(
        name=config.name,
        revision=config.revision,
        dim=kept(hidden_size),
        colbert_dim=kept(linears["colbert"].out_features) if "colbert" in linears else None,
        max_length=files.max_length,
        query_max_length=files.query_max_length,
        pooling=files.pooling,
        normalize=config.normalize,
        outputs=config.outputs,
        vector_dtype=config.vector_dtype,
        dtype=dtype,
        device=str(device),
        space_fingerprint=fingerprint(space_parts(config, files)),
    )
    heads = OutputHeads(
        linears,
        pooling=files.pooling,
        normalize=config.normalize,
        truncate_dim=config.truncate_dim,
        vector_dtype=TORCH_DTYPES[config.vector_dtype],
    )
    return Encoder(config=config, files=files, backbone=backbone, heads=heads, info=info)
