"""What a run will be, before it is one: passages, tokens, bytes and hours, from a sample.

The real chunker and tokenizer over some documents, scaled up by the length of texts, which is known
of far more. No encoder, no Ray.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actors.models.files import ModelFiles
from actors.tokens.tokenizer import TOKENS_COLUMN
from actors.tokens.tokenizer_files import non_lexical_ids
from actors.vectors import fixed_size_lists, sparse_vectors
from pipelines.config.run import AnyRunConfig, RunConfig
from pipelines.estimate.sample import Budget, CorpusSample, take_sample
from pipelines.estimate.speed import RememberedSpeed
from pipelines.index.parts import VECTOR_COLUMNS, PartWriter, stored_rows
from pipelines.passages.blocks import DocumentBlock
from pipelines.passages.rows import passage_blocks
from pipelines.source.formats.base import BATCH_DOCUMENTS, DocumentBatch
from pipelines.source.source import Source
from pipelines.source.units import Unit
from pipelines.store.files import scratch_folder
from pipelines.terminal.text import describe

_LONGEST = 32_768  # characters of a document: the rest of it is taken to be like them
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The size of a run."""

    units: int
    slices: int
    documents: int
    """Input rows, rejects included."""
    passages: int
    tokens: int
    """Special tokens included."""
    truncated: int
    """Passages of which the model sees less than the text."""
    rejects: dict[str, int]
    """Documents by code; duplicate ids are not looked for."""
    bytes: dict[str, int]
    """Of parts, by column group: text, columns (all that are no vectors), dense, sparse, colbert.
    The ledger and a generation's tables are not counted: some 100 bytes a document."""
    exact: tuple[str, ...]
    """The fields above that are no estimates."""
    actors: int
    tokens_per_second: float | None
    """Of one actor; None where nothing is known."""
    speed_from: str
    """Where that number comes from."""
    documents_sampled: int
    """Those that were tokenised."""
    units_sampled: int
    notes: tuple[str, ...]
    """What there is to know besides."""

    @property
    def total_bytes(self) -> int:
        """Of all parts."""
        return sum(self.bytes.values())

    @property
    def hours(self) -> float | None:
        """Of encoding; to start and to commit come on top."""
        if self.tokens_per_second is None:
            return None
        return self.tokens / (self.tokens_per_second * self.actors) / 3600

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"total_bytes": self.total_bytes, "hours": self.hours}

    def to_text(self) -> str:
        """Lines for people."""
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
    """Sample the units: seconds, whatever the size of the corpus. A small one is counted instead.

    `speed`: of one actor, where known; `actors`: those of `config.ray` when not given, else 1.

    Raises:
        ConfigError: passages that the model cannot hold.
        SourceError: a file changed since it was listed, or the store fails.
    """
    budget = budget or Budget()
    # Of a document that is not divided, no more than this can be seen (actors/tokens/tokenizer.py).
    longest = _LONGEST if config.chunk.by == "tokens" else 16 * files.max_length
    sample = take_sample(config.source, source, units, budget, longest)
    counted = _tokenise(config, files, sample, budget, longest)
    documents = sample.total_documents
    if documents is None:
        documents = round(float(sample.weights.sum()))
    passages, tokens, truncated = (round(total) for total in counted.totals)
    slices = _slices(config, units, sample, documents, tokens)
    sizes: dict[str, int] = {}
    if counted.passages.num_rows:
        output = measure_output(config, files, counted.passages, rows_in_part=passages / slices)
        sizes = output.of(passages, tokens)
    exact = ["units"]
    if sample.is_whole or sample.total_documents is not None:
        exact.append("documents")
    if sample.is_whole and counted.is_all:
        exact += ["passages", "tokens", "truncated", "rejects"]
    of_each = documents / max(counted.documents, 1)
    return Estimate(
        units=len(units),
        slices=slices,
        documents=documents,
        passages=passages,
        tokens=tokens,
        truncated=truncated,
        rejects={code: round(n * of_each) for code, n in counted.rejects.items()},
        bytes=sizes,
        exact=tuple(exact),
        actors=actors or config.ray.actors or 1,
        tokens_per_second=speed.tokens_per_second if speed else None,
        speed_from=speed.origin if speed else "",
        documents_sampled=counted.documents,
        units_sampled=sample.units_read,
        notes=tuple(_notes(config, sample)),
    )


def about_documents(config: AnyRunConfig, source: Source, units: Sequence[Unit]) -> int:
    """How many documents there are, more or less: from a small sample, in about a second.

    Raises:
        SourceError: a file changed since it was listed, or the store fails.
    """
    little = Budget(documents=256, read_bytes=2 << 20, compressed_bytes=1 << 20)
    sample = take_sample(config.source, source, units, little, _LONGEST)
    return round(float(sample.weights.sum()))


@dataclass(frozen=True)
class _Counted:
    """What the documents that were read have."""

    totals: tuple[float, float, float]
    """Passages, tokens, truncated passages."""
    documents: int
    """So many of them were tokenised."""
    rejects: Counter[str]
    """Of those."""
    passages: pa.Table
    """Of those, with `input_ids`."""
    is_all: bool
    """Every one was, all of it, and no id comes twice: nothing is an estimate."""


def _tokenise(
    config: RunConfig, files: ModelFiles, sample: CorpusSample, budget: Budget, longest: int
) -> _Counted:
    """Chunk and tokenise documents at equal distances among all that were read."""
    builder = passage_blocks(config, files)
    lengths, weights = sample.characters, sample.weights
    kept = np.minimum(lengths, longest)
    if config.chunk.by == "tokens":
        measure, grown = lengths, np.where(kept > 0, lengths / np.maximum(kept, 1), 1.0)
    else:
        measure = np.minimum(lengths, _CHARACTERS_PER_TOKEN * files.max_length)
        grown = np.ones(len(lengths))
        if sample.total_documents is not None and len(lengths):
            # What is cut off says nothing of what is left: documents count, not their bytes.
            weights = weights * (sample.total_documents / weights.sum())
    affordable = int(budget.characters / max(kept.mean(), 1)) + 1 if len(kept) else 0
    count = min(len(lengths), budget.documents, affordable)
    rows = ((np.arange(count) + 0.5) * len(lengths) / max(count, 1)).astype(np.int64)
    blocks = [builder.build(batch, 0, 0) for batch in _batches(sample.documents, rows)]
    counts = np.concatenate([_per_document(block) for block in blocks])
    counts = counts * (grown * weights)[rows][:, None]
    of_rows = float((measure * weights)[rows].sum())
    scale = float((measure * weights).sum()) / of_rows if of_rows else 0.0
    passages, tokens, truncated = (counts.sum(axis=0) * scale).tolist()
    ids = [doc_id for block in blocks for doc_id in block.tables.ledger["doc_id"].to_pylist()]
    return _Counted(
        totals=(passages, tokens, truncated),
        documents=count,
        rejects=Counter(
            code for block in blocks for code in block.tables.rejects["code"].to_pylist()
        ),
        passages=pa.concat_tables([block.tables.passages for block in blocks]).combine_chunks(),
        is_all=count == len(lengths) and bool((grown == 1).all()) and len(set(ids)) == len(ids),
    )


def _batches(documents: DocumentBatch, rows: np.ndarray) -> Iterator[DocumentBatch]:
    """Of the chosen rows; an empty one at least."""
    for start in range(0, max(len(rows), 1), BATCH_DOCUMENTS):
        chosen = rows[start : start + BATCH_DOCUMENTS]
        faults = {
            i: documents.faults[row]
            for i, row in enumerate(chosen.tolist())
            if row in documents.faults
        }
        yield DocumentBatch(documents.table.take(pa.array(chosen)), faults)


def _per_document(block: DocumentBlock) -> np.ndarray:
    """Passages, tokens and truncated passages: int64 [documents, 3]."""
    truncated = np.cumsum([0, *block.tables.passages["truncated"].to_pylist()])
    return np.stack(
        [np.diff(ends) for ends in (block.rows, block.tokens, truncated[block.rows])], 1
    )


def _slices(
    config: RunConfig, units: Sequence[Unit], sample: CorpusSample, documents: int, tokens: int
) -> int:
    """A unit makes one slice at least, and one more at each limit."""
    known = [unit.documents for unit in units]
    in_unit = np.array(
        [
            share * documents if n is None else n
            for share, n in zip(sample.shares, known, strict=True)
        ]
    )
    by_documents = in_unit / config.slice.documents
    by_tokens = sample.shares * tokens / config.slice_max_tokens
    return int(np.maximum(np.ceil(np.maximum(by_documents, by_tokens)), 1).sum())


def _notes(config: RunConfig, sample: CorpusSample) -> Iterator[str]:
    if config.source.columns.id is None:
        yield (
            "ids: from file name and position; a document that moves counts as a new one when "
            "re-indexing"
        )
    if not len(sample.characters):
        yield "no document could be read: nothing is known of them"
    if sample.units_of_unknown_size:
        n = f"{sample.units_of_unknown_size:,}"
        yield f"the size of {n} units is a guess: their server does not say"


_WRITTEN_BYTES = 32 << 20  # of vectors: several row groups, as in a part
_WRITTEN_PASSAGES = 2_048


@dataclass(frozen=True)
class OutputBytes:
    """Stored bytes of each column group, of some passages that were written."""

    sizes: Mapping[str, int]
    passages: int
    tokens: int

    def of(self, passages: float, tokens: float) -> dict[str, int]:
        """The bytes of more passages: columns and dense follow passages, the others tokens."""
        by_token, by_passage = tokens / self.tokens, passages / self.passages
        vectors = max(self.tokens - self.passages, 1)
        scale = {"text": by_token, "sparse": by_token, "colbert": (tokens - passages) / vectors}
        return {name: round(n * scale.get(name, by_passage)) for name, n in self.sizes.items()}


def measure_output(
    config: RunConfig, files: ModelFiles, passages: pa.Table, rows_in_part: float
) -> OutputBytes:
    """Write some of `passages` (with `input_ids`; one at least) as one part, by the real writer.

    Vectors are random: dense and ColBERT ones are stored uncompressed, and weights differ anyway.
    """
    hidden = int(files.config["hidden_size"])
    dim, colbert = min(hidden, config.model.truncate_dim or hidden), 0
    if "colbert" in config.outputs:
        from actors.network.heads import load_head  # late: torch

        head = load_head(files.heads["colbert"], hidden, out_features=None)
        colbert = min(head.out_features, config.model.truncate_dim or head.out_features)
    bytes_of = np.cumsum(2 * (passages["n_tokens"].to_numpy() * colbert + dim))
    fit = int(np.searchsorted(bytes_of, _WRITTEN_BYTES)) + 1
    count = min(fit, _WRITTEN_PASSAGES, passages.num_rows, max(round(rows_in_part), 1))
    few = passages.slice(int((passages.num_rows - count) / 2), count)
    vectors = _random_vectors(config, files, few[TOKENS_COLUMN].combine_chunks(), dim, colbert)
    few = few.drop_columns([TOKENS_COLUMN])
    sizes: dict[str, int] = defaultdict(int)
    with scratch_folder() as scratch:
        path = scratch / "part.parquet"
        table = stored_rows(few, vectors, config.index.colbert_storage)
        with PartWriter(path, table.schema) as writer:
            writer.write(table)
        metadata = pq.read_metadata(path)
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for chunk in map(group.column, range(metadata.num_columns)):
                name = chunk.path_in_schema.partition(".")[0]
                if name in ("text", *VECTOR_COLUMNS):
                    sizes[name] += chunk.total_compressed_size
        sizes["columns"] = path.stat().st_size - sum(sizes.values())
    order = [name for name in ("text", "columns", *VECTOR_COLUMNS) if name in sizes]
    tokens = int(few["n_tokens"].to_numpy().sum())
    return OutputBytes({name: sizes[name] for name in order}, count, tokens)


def _random_vectors(
    config: RunConfig, files: ModelFiles, input_ids: pa.ListArray, dim: int, colbert: int
) -> pa.Table:
    random, n = np.random.default_rng(0), len(input_ids)
    ids, ends = input_ids.flatten().to_numpy(), input_ids.offsets.to_numpy()
    ends = ends - ends[0]

    def rows(count: int, width: int) -> pa.FixedSizeListArray:
        values = random.standard_normal((count, width), dtype=np.float32)
        return fixed_size_lists(values.astype(config.model.vector_dtype))

    columns: dict[str, pa.Array] = {}
    if "dense" in config.outputs:
        columns["dense"] = rows(n, dim)
    if "sparse" in config.outputs:
        weights = random.random(len(ids), dtype=np.float32) + np.float32(1e-3)
        # Weights that are computed in half precision compress better.
        kept = {"float16": 10, "bfloat16": 7}.get(config.model.dtype, 23)
        weights = (weights.view(np.uint32) >> (23 - kept) << (23 - kept)).view(np.float32)
        non_lexical = np.array(sorted(non_lexical_ids(files.folder)), dtype=np.int32)
        columns["sparse"] = sparse_vectors(weights, ids, ends, non_lexical)
    if "colbert" in config.outputs:
        offsets = pa.array((ends - np.arange(n + 1)).astype(np.int32))
        columns["colbert"] = pa.ListArray.from_arrays(offsets, rows(len(ids) - n, colbert))
    return pa.table(columns)
