"""What output rows take on storage, measured on a few: written as parts are, with random vectors.

Right because it is the real writer: dense and ColBERT vectors are stored uncompressed, sparse ones
and texts compressed, both within row groups of the size that real vectors give.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actors.heads import load_head
from actors.model_files import ModelFiles
from actors.tokenizer import TOKENS_COLUMN
from actors.tokenizer_files import non_lexical_ids
from actors.vectors import fixed_size_lists, sparse_vectors
from pipelines.config_pairs import RunConfig
from pipelines.output import VECTOR_COLUMNS, PartWriter, stored_rows

_VECTOR_BYTES = 8 << 20
_VECTOR_PASSAGES = 64
_ROW_GROUP_BYTES = 5 << 20  # PartWriter halves what it holds, a little over 8 MiB
_PASSAGES = 2_048
_RUNS = 64


@dataclass(frozen=True)
class Dims:
    """Dimensions of the vectors a run stores; 0 where it has none."""

    dense: int
    colbert: int

    @staticmethod
    def of(config: RunConfig, files: ModelFiles) -> Dims:
        """From config.json and the ColBERT head's file: no encoder is loaded."""
        hidden = int(files.config["hidden_size"])
        most = config.model.truncate_dim or hidden
        colbert = 0
        if "colbert" in config.outputs:
            head = load_head(files.heads["colbert"], hidden, out_features=None)
            colbert = min(head.out_features, most)
        return Dims(min(hidden, most) if "dense" in config.outputs else 0, colbert)


@dataclass(frozen=True)
class OutputBytes:
    """Stored bytes of each column group: of a token (text, sparse), of a passage (columns, dense),
    of a token vector (colbert); and what a part has beside: once, and in each row group.
    """

    text: float
    columns: float
    dense: float
    sparse: float
    colbert: float
    part: float
    group: float
    rows_in_group: float

    def of(self, passages: float, tokens: float, parts: float) -> dict[str, int]:
        """Bytes by column group."""
        groups = max(parts, passages / self.rows_in_group)
        sizes = {
            "text": self.text * tokens,
            "columns": self.columns * passages + self.part * parts + self.group * groups,
            "dense": self.dense * passages,
            "sparse": self.sparse * tokens,
            "colbert": self.colbert * (tokens - passages),
        }
        return {name: round(size) for name, size in sizes.items() if size > 0}


def measure_output(
    config: RunConfig, files: ModelFiles, passages: pa.Table, rows_in_part: float
) -> OutputBytes:
    """Write some of `passages` (with `input_ids`; one at least), in parts of so many rows."""
    writer = _Measure(config, files)
    tokens = passages["n_tokens"].to_numpy()
    width = 2 * max(writer.dims.colbert, 1)
    fit = int(np.searchsorted(np.cumsum(tokens) * width, _VECTOR_BYTES))
    few = passages.slice(0, int(np.clip(fit, 1, _VECTOR_PASSAGES)))
    vectors = writer.write(few, VECTOR_COLUMNS)
    no_rows = writer.write(few.slice(0, 0), VECTOR_COLUMNS)
    n_few, tokens_few = few.num_rows, int(tokens[: few.num_rows].sum())
    # Compression sees no further than a row group, and ColBERT makes those short.
    in_group = int(np.clip(_ROW_GROUP_BYTES * n_few / vectors.in_memory, 1, max(rows_in_part, 1)))
    run = min(in_group, passages.num_rows, _PASSAGES)
    count = min(max(_PASSAGES // run, 1), _RUNS, passages.num_rows // run)
    sums: dict[str, float] = defaultdict(float)
    tokens_written = 0
    for i in range(count):
        rows = passages.slice(int(i * (passages.num_rows - run) / max(count - 1, 1)), run)
        tokens_written += int(rows["n_tokens"].to_numpy().sum())
        for name, size in writer.write(rows, ("sparse",)).columns.items():
            sums[name] += size
    return OutputBytes(
        text=sums["text"] / tokens_written,
        columns=sums["columns"] / (count * run),
        dense=vectors.columns["dense"] / n_few,
        sparse=sums["sparse"] / tokens_written,
        colbert=vectors.columns["colbert"] / max(tokens_few - n_few, 1),
        part=no_rows.beside,
        group=vectors.beside - no_rows.beside,
        rows_in_group=in_group,
    )


@dataclass(frozen=True)
class _Written:
    columns: Mapping[str, int]
    """Bytes of text, dense, sparse and colbert, and of all other columns."""
    beside: int
    """Bytes of the file that are no column's."""
    in_memory: int


class _Measure:
    def __init__(self, config: RunConfig, files: ModelFiles) -> None:
        self.dims = Dims.of(config, files)
        self._config = config
        self._non_lexical = np.array(sorted(non_lexical_ids(files.folder)), dtype=np.int32)
        self._random = np.random.default_rng(0)

    def write(self, passages: pa.Table, vectors: tuple[str, ...]) -> _Written:
        columns = self._vectors(passages[TOKENS_COLUMN].combine_chunks(), vectors)
        table = stored_rows(
            passages.drop_columns([TOKENS_COLUMN]), columns, self._config.index.colbert_storage
        )
        sizes: dict[str, int] = defaultdict(int)
        with tempfile.TemporaryDirectory(prefix="packvec-") as scratch:
            path = Path(scratch) / "part.parquet"
            with PartWriter(path, table.schema) as writer:
                writer.write(table)
            metadata = pq.read_metadata(path)
            for group in range(metadata.num_row_groups):
                for i in range(metadata.num_columns):
                    chunk = metadata.row_group(group).column(i)
                    name = chunk.path_in_schema.partition(".")[0]
                    known = name in ("text", *VECTOR_COLUMNS)
                    sizes[name if known else "columns"] += chunk.total_compressed_size
            beside = path.stat().st_size - sum(sizes.values())
        return _Written(sizes, beside, table.nbytes)

    def _vectors(self, input_ids: pa.ListArray, names: tuple[str, ...]) -> pa.Table:
        wanted = set(names) & set(self._config.outputs)
        ids, ends = input_ids.flatten().to_numpy(), input_ids.offsets.to_numpy()
        ends = ends - ends[0]
        columns: dict[str, pa.Array] = {}
        if "dense" in wanted:
            columns["dense"] = self._rows(len(input_ids), self.dims.dense)
        if "sparse" in wanted:
            weights = self._weights(len(ids))
            columns["sparse"] = sparse_vectors(weights, ids, ends, self._non_lexical)
        if "colbert" in wanted:
            offsets = pa.array((ends - np.arange(len(ends))).astype(np.int32))
            rows = self._rows(len(ids) - len(input_ids), self.dims.colbert)
            columns["colbert"] = pa.ListArray.from_arrays(offsets, rows)
        return pa.table(columns)

    def _rows(self, count: int, dim: int) -> pa.FixedSizeListArray:
        values = self._random.standard_normal((count, dim), dtype=np.float32)
        return fixed_size_lists(values.astype(self._config.model.vector_dtype))

    def _weights(self, count: int) -> np.ndarray:
        """Positive, as most real ones are; those computed in half precision compress better."""
        weights = self._random.random(count, dtype=np.float32) + np.float32(1e-3)
        kept = {"float16": 10, "bfloat16": 7}.get(self._config.model.dtype)
        if kept is None:
            return weights
        return (weights.view(np.uint32) >> (23 - kept) << (23 - kept)).view(np.float32)
