"""Estimates passages, tokens, bytes and hours of a run from a sample of its documents.

The real chunker and tokenizer process some documents. The result is scaled up by text lengths,
which are known for many more documents. No encoder and no Ray are needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors.models.files import ModelFiles
from actors.tokens.tokenizer import TOKENS_COLUMN
from actors.tokens.tokenizer_files import non_lexical_ids
from actors.vectors import fixed_size_lists, sparse_vectors, token_column
from pipelines.config.run import AnyRunConfig, RunConfig
from pipelines.estimate.sample import Budget, CorpusSample, take_sample
from pipelines.estimate.speed import RememberedSpeed
from pipelines.index.parts import VECTOR_COLUMNS, PartWriter, stored_rows
from pipelines.passages.blocks import DocumentBlock
from pipelines.passages.rows import passage_blocks
from pipelines.source.formats.base import DocumentBatch
from pipelines.source.source import Source
from pipelines.source.units import Unit
from pipelines.store.files import scratch_folder
from pipelines.terminal.text import describe

_LONGEST = 32_768  # characters of a document; the rest is assumed to be similar
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The estimated size and duration of a run."""

    units: int
    slices: int
    documents: int
    """Input rows, including rejects."""
    passages: int
    tokens: int
    """Tokens, including special tokens."""
    truncated: int
    """Passages whose text is too long for the model."""
    rejects: dict[str, int]
    """Rejected documents by code; duplicate ids are not detected."""
    bytes: dict[str, int]
    """Bytes of parts by column group: text, dense, sparse, colbert, and columns (all others). The
    ledger and the tables of the generation, about 100 bytes per document, are not counted."""
    exact: tuple[str, ...]
    """Names of the fields above that are exact."""
    actors: int
    tokens_per_second: float | None
    """Speed of one actor; None if unknown."""
    speed_from: str
    """Origin of `tokens_per_second`."""
    documents_sampled: int
    """Number of tokenised documents."""
    units_sampled: int
    notes: tuple[str, ...]
    """Remarks for people."""

    @property
    def total_bytes(self) -> int:
        """The size of all parts."""
        return sum(self.bytes.values())

    @property
    def hours(self) -> float | None:
        """The duration of encoding, without start and commit."""
        if self.tokens_per_second is None:
            return None
        return self.tokens / (self.tokens_per_second * self.actors) / 3600

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return asdict(self) | {"total_bytes": self.total_bytes, "hours": self.hours}

    def to_text(self) -> str:
        """Return lines for people."""
        return describe(self.to_json())


def estimate_run(
    config: RunConfig,
    files: ModelFiles,
    source: Source,
    units: Sequence[Unit],
    *,
    speed: RememberedSpeed | None = None,
    actors: int | None = None,
    budget: Budget | None = None,
) -> Estimate:
    """Estimate a run from a sample of its units, within seconds. A small corpus is counted.

    `speed`: the speed of one actor, if known; `actors`: by default as in `config.ray`, else 1.

    Raises:
        ConfigError: the model cannot hold such passages.
        SourceError: a file changed since it was listed, or the store fails.
    """
    budget = budget or Budget()
    # Without chunking, the tokenizer reads only this much (actors/tokens/tokenizer.py).
    longest = _LONGEST if config.chunk.by == "tokens" else 16 * files.max_length
    sample = take_sample(config.source, source, units, budget, longest)
    block, weights, is_all = _tokenise(config, files, sample, budget)
    truncated_to = np.cumsum([0, *block.tables.passages["truncated"].to_pylist()])[block.rows]
    passages, tokens, truncated = (
        round(float(np.diff(ends) @ weights)) for ends in (block.rows, block.tokens, truncated_to)
    )
    slices = _slices(config, units, sample, tokens)
    exact = ["units"]
    if sample.is_counted:
        exact.append("documents")
    if sample.is_whole and is_all:
        exact += ["passages", "tokens", "truncated", "rejects"]
    rejects = Counter(block.tables.rejects["code"].to_pylist())
    of_each = sample.total_documents / max(len(block), 1)
    return Estimate(
        units=len(units),
        slices=slices,
        documents=sample.total_documents,
        passages=passages,
        tokens=tokens,
        truncated=truncated,
        rejects={code: round(n * of_each) for code, n in rejects.items()},
        bytes=_output_bytes(config, files, block.tables.passages, slices, passages, tokens),
        exact=tuple(exact),
        actors=actors or config.ray.actors or 1,
        tokens_per_second=speed.tokens_per_second if speed else None,
        speed_from=speed.origin if speed else "",
        documents_sampled=len(block),
        units_sampled=sample.units_read,
        notes=tuple(_notes(config, sample)),
    )


def about_documents(config: AnyRunConfig, source: Source, units: Sequence[Unit]) -> int:
    """Return the approximate number of documents, from a small sample, in about a second.

    Raises:
        SourceError: a file changed since it was listed, or the store fails.
    """
    little = Budget(documents=256, read_bytes=1 << 20)
    return take_sample(config.source, source, units, little, _LONGEST).total_documents


def _tokenise(
    config: RunConfig, files: ModelFiles, sample: CorpusSample, budget: Budget
) -> tuple[DocumentBlock, np.ndarray, bool]:
    """Chunk and tokenise documents evenly spaced among those that were read.

    Returns the block, the number of documents of the corpus that each represents, and whether the
    block is the whole corpus: all documents, uncut, without duplicate ids.
    """
    lengths, weights = sample.lengths, sample.weights
    texts = sample.documents.table["text"]
    kept = pc.fill_null(pc.binary_length(texts), 0).to_numpy()
    if config.chunk.by == "tokens":
        measure, grown = lengths, np.where(kept > 0, lengths / np.maximum(kept, 1), 1.0)
    else:
        measure = np.minimum(lengths, _BYTES_PER_TOKEN * files.max_length)
        grown = np.ones(len(lengths))
        # Text beyond the cut is irrelevant, so weights count documents, not bytes.
        weights = weights * (sample.total_documents / max(weights.sum(), 1.0))
    affordable = int(budget.text_bytes / max(kept.mean(), 1)) + 1 if len(kept) else 0
    count = min(len(lengths), budget.documents, affordable)
    rows = ((np.arange(count) + 0.5) * len(lengths) / max(count, 1)).astype(np.int64)
    faults = sample.documents.faults
    chosen = DocumentBatch(
        sample.documents.table.take(pa.array(rows)),
        {i: faults[row] for i, row in enumerate(rows.tolist()) if row in faults},
    )
    block = passage_blocks(config, files).build(chosen, 0, 0)
    of_rows = float((measure * weights)[rows].sum())
    scale = float((measure * weights).sum()) / of_rows if of_rows else 0.0
    ids = block.tables.ledger["doc_id"].to_pylist()
    is_all = count == len(lengths) and bool((grown == 1).all()) and len(set(ids)) == len(ids)
    return block, (grown * weights)[rows] * scale, is_all


def _slices(config: RunConfig, units: Sequence[Unit], sample: CorpusSample, tokens: int) -> int:
    """Return the number of slices: at least one per unit, and one more at each limit."""
    known = np.array([unit.documents for unit in units], np.float64)  # None becomes nan
    by_documents = np.where(np.isnan(known), sample.shares * sample.total_documents, known)
    limits = by_documents / config.slice.documents, sample.shares * tokens / config.slice_max_tokens
    return int(np.maximum(np.ceil(np.maximum(*limits)), 1).sum())


def _notes(config: RunConfig, sample: CorpusSample) -> Iterator[str]:
    if config.source.columns.id is None:
        yield (
            "ids: from file name and position; re-indexing treats a document that moves as a new "
            "one"
        )
    if not len(sample.lengths):
        yield "no document could be read: their size is unknown"
    if sample.units_of_unknown_size:
        n = f"{sample.units_of_unknown_size:,}"
        yield f"the size of {n} units is a guess: their server does not report it"


_WRITTEN_BYTES = 32 << 20  # bytes of vectors: several row groups, as in a part


def _output_bytes(
    config: RunConfig, files: ModelFiles, sampled: pa.Table, slices: int, passages: int, tokens: int
) -> dict[str, int]:
    """Return the bytes of `passages` by column group, scaled up from a file of some of them.

    `sampled`: passages with the column `input_ids`.
    """
    if not sampled.num_rows:
        return {}
    hidden = int(files.config["hidden_size"])
    dim, colbert = min(hidden, config.model.truncate_dim or hidden), 0
    if "colbert" in config.outputs:
        from actors.network.heads import load_head  # late: torch

        full = load_head(files.heads["colbert"], hidden, out_features=None).out_features
        colbert = min(full, config.model.truncate_dim or full)
    bytes_of = np.cumsum(2 * (sampled["n_tokens"].to_numpy() * colbert + dim))
    fit = int(np.searchsorted(bytes_of, _WRITTEN_BYTES)) + 1
    count = min(fit, sampled.num_rows, max(round(passages / slices), 1))
    few = sampled.slice((sampled.num_rows - count) // 2, count)
    vectors = _vectors(config, files, few, dim, colbert)
    table = stored_rows(few.drop_columns([TOKENS_COLUMN]), vectors, config.index.colbert_storage)
    sizes = dict.fromkeys(("text", "columns", *VECTOR_COLUMNS), 0)
    with scratch_folder() as scratch:
        path = scratch / "part.parquet"
        with PartWriter(path, table.schema) as writer:
            writer.write(table)
        metadata = pq.read_metadata(path)
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for chunk in map(group.column, range(metadata.num_columns)):
                name = chunk.path_in_schema.partition(".")[0]
                if name in ("text", *VECTOR_COLUMNS):
                    sizes[name] += chunk.total_compressed_size
        sizes["columns"] = path.stat().st_size - sum(sizes.values())
    written = int(few["n_tokens"].to_numpy().sum())
    by_token, by_vector = tokens / written, (tokens - passages) / max(written - count, 1)
    scale = {"text": by_token, "sparse": by_token, "colbert": by_vector}
    return {name: round(n * scale.get(name, passages / count)) for name, n in sizes.items() if n}


def _vectors(
    config: RunConfig, files: ModelFiles, passages: pa.Table, dim: int, colbert: int
) -> pa.Table:
    """Return columns of realistic size. Sparse ones are compressed, so they have real ids."""
    lengths, dtype = passages["n_tokens"].to_numpy(), config.model.vector_dtype
    columns: dict[str, pa.Array] = {}
    if "dense" in config.outputs:
        columns["dense"] = fixed_size_lists(np.zeros((len(lengths), dim), dtype))
    if "sparse" in config.outputs:
        ids = passages[TOKENS_COLUMN].combine_chunks().flatten().to_numpy()
        weights = np.random.default_rng(0).random(len(ids), dtype=np.float32) + np.float32(1e-3)
        # Weights computed in half precision compress better.
        kept = {"float16": 10, "bfloat16": 7}.get(config.model.dtype, 23)
        weights = (weights.view(np.uint32) >> (23 - kept) << (23 - kept)).view(np.float32)
        non_lexical = np.array(sorted(non_lexical_ids(files.folder)), dtype=np.int32)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        columns["sparse"] = sparse_vectors(weights, ids, ends, non_lexical)
    if "colbert" in config.outputs:
        zeros = np.zeros((lengths.sum() - len(lengths), colbert), dtype)
        columns["colbert"] = token_column(lengths - 1, zeros)
    return pa.table(columns)
