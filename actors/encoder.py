"""Encode passages and queries as vectors, returned as Arrow tables.

    encoder = load_encoder(ModelConfig(name="BAAI/bge-m3", outputs=("dense", "sparse", "colbert")))
    encoder.encode_passages(["Ray is a distributed engine."])     # pyarrow.Table with one row
    encoder.encode_queries(["what is ray"])["dense"]              # pyarrow.ChunkedArray

A table has one row for each text, in input order, and one column for each output:

- dense: `FixedSizeList<half|float>[dim]`
- sparse: `Struct<indices: List<int32>, values: List<float>>`, token ids ascending within a row
- colbert: `List<FixedSizeList<half|float>[colbert_dim]>`, one vector fewer than the passage has
  tokens, since the first token has none

Encoding has three phases: tokenisation (CPU), forward pass (device), Arrow columns (CPU). Only the
forward pass holds the device, so threads that share an encoder overlap their other phases with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch

from actors.config import ModelConfig, Output
from actors.encoded import EncodedBatch, EncoderInfo
from actors.errors import EncodeError, ModelError
from actors.fingerprint import fingerprint, space_parts
from actors.models.files import ModelFiles, resolve_model
from actors.network.backbone import (
    TORCH_DTYPES,
    fastest,
    load_backbone,
    resolve_device,
    resolve_dtype,
)
from actors.network.batch_runner import device_errors
from actors.network.forward import Forward, WindowVectors
from actors.network.heads import OutputHeads, load_head
from actors.network.micro_batches import micro_batches
from actors.tokens.icl import query_tokenizer
from actors.tokens.tokenizer import TOKENS_COLUMN, TextTokenizer, TokenizedTexts
from actors.tokens.tokenizer_files import non_lexical_ids
from actors.vectors import to_arrow

__all__ = ["EncodedBatch", "Encoder", "EncoderInfo", "ModelConfig", "load_encoder"]


class Encoder:
    """A loaded embedding model; use `load_encoder` to create one. Threads may share it."""

    def __init__(
        self, *, files: ModelFiles, forward: Forward, heads: OutputHeads, info: EncoderInfo
    ) -> None:
        self.info = info
        """Properties of the model, such as `dim`, `max_length` and `space_fingerprint`."""
        self._forward = forward
        self._heads = heads
        # Windows queued on the device while the host converts the previous one to columns.
        self._ahead = 1 if torch.device(info.device).type == "cuda" else 0
        self.vocab_size = int(files.config["vocab_size"])
        """Number of token ids; on CUDA an id outside [0, vocab_size) makes the device unusable."""
        self.passage_tokenizer = TextTokenizer(
            files.folder, files.max_length, files.prompts.passage
        )
        self.query_tokenizer = query_tokenizer(files)
        self._non_lexical = np.array(sorted(non_lexical_ids(files.folder)), dtype=np.int32)

    @property
    def max_batch_tokens(self) -> int:
        """Token budget of a forward pass; lowered when the device runs out of memory."""
        return self._forward.batches.max_batch_tokens

    @max_batch_tokens.setter
    def max_batch_tokens(self, tokens: int) -> None:
        self._forward.batches.max_batch_tokens = tokens

    def encode_passages(self, passages: Sequence[str] | pa.Table) -> pa.Table:
        """Return the output columns of N passages, in input order.

        `passages`: texts, or a token block (a table with a list<int32> column `input_ids`). Texts
        get the model's passage instruction and are truncated to `info.max_length` tokens.

        Raises:
            EncodeError: the vectors of a passage are not finite or cannot be computed.
            DeviceError: the device failed permanently.
            TypeError: `passages` is one text instead of a list.
        """
        if isinstance(passages, pa.Table):
            return self._encode(passages[TOKENS_COLUMN])
        return self._encode(self.passage_tokenizer.tokenize(_texts(passages)).to_arrow())

    def encode_queries(self, queries: Sequence[str]) -> pa.Table:
        """Return the output columns of N queries, in input order.

        Queries get the model's query instruction and are truncated to `info.query_max_length`
        tokens. Raises the same errors as `encode_passages`.
        """
        return self._encode(self.tokenize_queries(queries).to_arrow())

    def tokenize_queries(self, queries: Sequence[str]) -> TokenizedTexts:
        """Return the token ids that `encode_queries` encodes, instruction and examples included."""
        return self.query_tokenizer.tokenize(_texts(queries))

    def stream(
        self,
        input_ids: pa.ListArray | pa.ChunkedArray,
        outputs: Collection[Output] | None = None,
    ) -> Iterator[EncodedBatch]:
        """Encode a list<int32> column of token ids; yield batches of rows in input order.

        `outputs`: a subset of `info.outputs`; all of them when not given. A passage that cannot be
        encoded is listed in `EncodedBatch.failures` and does not affect the others.

        Raises:
            DeviceError: the device failed permanently, as CUDA does after a fault in a kernel.
        """
        if isinstance(input_ids, pa.ChunkedArray):
            input_ids = input_ids.combine_chunks()
        values = input_ids.values.to_numpy(zero_copy_only=True)
        offsets = input_ids.offsets.to_numpy(zero_copy_only=True)
        wanted = frozenset(self.info.outputs if outputs is None else outputs)
        begun: deque[tuple[int, int, WindowVectors]] = deque()
        with device_errors(self.info.device, "vectors"):
            for start, stop in micro_batches(offsets, self._forward.window_tokens):
                begun.append(
                    (start, stop, self._forward(values, offsets[start : stop + 1], wanted))
                )
                if len(begun) > self._ahead:
                    yield self._columns(values, offsets, *begun.popleft())
            while begun:
                yield self._columns(values, offsets, *begun.popleft())

    def empty(self) -> pa.Table:
        """Return the output columns with no rows."""
        nothing = self._heads.zeros(0, 0, 0, self.info.outputs, torch.device("cpu"))
        none = np.zeros(0, np.int32)
        return to_arrow(nothing, none, np.zeros(1, np.int32), none)

    def _encode(self, input_ids: pa.ListArray | pa.ChunkedArray) -> pa.Table:
        tables = [self.empty()]
        for batch in self.stream(input_ids):
            for row, reason in batch.failures.items():
                raise EncodeError(f"passage {row} cannot be encoded: {reason}")
            tables.append(batch.columns)
        return pa.concat_tables(tables).combine_chunks()

    def _columns(
        self, values: np.ndarray, offsets: np.ndarray, start: int, stop: int, encoded: WindowVectors
    ) -> EncodedBatch:
        """Wait for the device; return rows [start, stop) of the column as a batch."""
        encoded.wait()
        rows = offsets[start : stop + 1]
        columns = to_arrow(
            encoded.vectors,
            values[rows[0] : rows[-1]],
            (rows - rows[0]).astype(np.int32),
            self._non_lexical,
        )
        bad = np.flatnonzero(~encoded.vectors.finite_N.numpy()).tolist()
        reasons = dict.fromkeys(bad, "NaN or Inf in the vectors") | encoded.failures
        return EncodedBatch(
            start, stop, columns, {start + row: why for row, why in reasons.items()}
        )


def _texts(texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str):  # a str is also a sequence of str
        raise TypeError("expected a list of texts, got one text; write [text]")
    return texts


def load_encoder(config: ModelConfig) -> Encoder:
    """Load a model and its heads onto `config.device`.

    Raises:
        ModelError: the model is not found, a weight is missing, a head has the wrong shape, the
            device does not exist, or the configuration asks for a simulated model.
    """
    if config.simulated_tokens_per_second is not None:
        raise ModelError(
            "model.simulated_tokens_per_second: expected a model that computes vectors, got a "
            "simulated one.",
            "Remove this key; only embed_corpus accepts it, to measure a cluster.",
        )
    files = resolve_model(config)
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device, files.record)
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

    heads = OutputHeads(
        linears,
        hidden_size=hidden_size,
        pooling=files.pooling,
        normalize=config.normalize,
        truncate_dim=config.truncate_dim,
        vector_dtype=TORCH_DTYPES[config.vector_dtype],
    )
    info = EncoderInfo(
        name=config.name,
        revision=config.revision,
        dim=heads.dim,
        colbert_dim=heads.colbert_dim,
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
    forward = Forward(
        fastest(backbone, files.family),
        heads,
        device=device,
        first_position=files.family.first_position(files.config),
        max_batch_tokens=config.max_batch_tokens,
    )
    return Encoder(files=files, forward=forward, heads=heads, info=info)
