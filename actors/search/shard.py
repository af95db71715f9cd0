"""Search the vectors of a shard of the passages exactly.

    shard = Shard(doc_ids, {"dense": column, "sparse": column})
    shard.rank(queries, ("dense", "hybrid"), top=10)

Rows are numbered from 0 in the order given; the rows of a document are adjacent. Every row is
scored, one block of rows and a few hundred queries at a time, so that working memory does not grow
with the shard. Shape suffixes: Q queries, B rows of a block, K best rows, M pairs, N rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from actors.config import OUTPUTS, Output
from actors.network.batch_runner import SingleThreads
from actors.search.fusion import Best, Level, Ranking, Weights, weighted_mean
from actors.search.kernels import SCORED_ROWS, Floats, ScoredRows, Scorer, score_pairs, segments
from actors.search.top_rows import TopRows

_QUERIES, _LEAST_QUERIES = 512, 32


@dataclass(frozen=True)
class _Block:
    """Adjacent rows of whole documents that are scored at once."""

    first_row: int
    first_document: int
    document_offsets: np.ndarray
    """int64 [documents + 1]: where documents begin within the block, from 0."""
    rows: Mapping[Output, ScoredRows]


@dataclass(frozen=True)
class _Batch:
    """Queries [start, stop) with the best rows found for them so far."""

    start: int
    stop: int
    best: Mapping[Ranking, TopRows]


class Shard:
    """A thread-safe exact search over passages in memory."""

    def __init__(
        self,
        doc_ids: pa.ChunkedArray,
        vectors: Mapping[Output, pa.ChunkedArray],
        *,
        device: str = "cpu",
    ) -> None:
        """Chunks are blocks of whole documents and must have the same rows in every column.

        `device`: scores dense and ColBERT vectors. On the CPU they are not copied.
        """
        self.outputs: tuple[Output, ...] = tuple(o for o in OUTPUTS if o in vectors)
        self._device = torch.device(device)
        self._vectors = vectors
        self._threads = SingleThreads()
        self._blocks = list(self._read(doc_ids))
        self._rows = len(doc_ids)
        starts = [block.first_row + block.document_offsets[:-1] for block in self._blocks]
        self._documents = np.concatenate([np.zeros(0, np.int64), *starts])

    def __len__(self) -> int:
        return self._rows

    def rank(
        self,
        queries: pa.Table,
        by: Collection[Ranking],
        top: int,
        *,
        unit: Level = "passage",
        weights: Weights = (1.0, 1.0, 1.0),
    ) -> dict[Ranking, Best]:
        """Return the best rows of each query. A document scores as its best passage and is given by
        its first row.

        `queries`: an encoder's columns. Sparse ranks only rows that share a token with the query.
        """
        needed = self._needed(by, weights)
        batches = _batches(len(queries), top, by, on_cpu=self._device.type == "cpu")
        floats = {output: Floats() for output in needed}
        for block in self._blocks:
            scorers = {
                output: block.rows[output].scorer(queries[output], floats[output])
                for output in needed
            }
            self._threads.run(partial(_rank, block, scorers, unit, weights), batches)
        found = {name: [batch.best[name] for batch in batches] for name in by}
        return {name: self._sorted(parts, top, unit) for name, parts in found.items()}

    def score(self, queries: pa.Table, query_M: np.ndarray, row_M: np.ndarray) -> pa.Table:
        """Return the scores of pairs of a query and a row, a float32 [M] column per output."""
        return pa.table(
            {
                output: score_pairs(
                    output, queries[output], self._vectors[output], query_M, row_M, self._threads
                )
                for output in self.outputs
            }
        )

    def document_rows(self, row_N: np.ndarray) -> np.ndarray:
        """Return int64 [N, 2]: the rows [first, stop) of the document that contains each row."""
        at = np.searchsorted(self._documents, row_N, side="right")
        return np.stack([self._documents[at - 1], np.append(self._documents, len(self))[at]], 1)

    def _needed(self, by: Collection[Ranking], weights: Weights) -> tuple[Output, ...]:
        weight = dict(zip(OUTPUTS, weights, strict=True))
        return tuple(o for o in self.outputs if o in by or ("hybrid" in by and weight[o]))

    def _sorted(self, parts: Sequence[TopRows], top: int, unit: Level) -> Best:
        found = [part.sorted() for part in parts]
        scores_QK = np.concatenate([np.zeros((0, top), np.float32), *(s for s, _ in found)])
        rows_QK = np.concatenate([np.zeros((0, top), np.int64), *(r for _, r in found)])
        if unit == "document" and len(self._documents):
            rows_QK = np.where(rows_QK < 0, -1, self._documents[rows_QK])
        return scores_QK, rows_QK

    def _read(self, doc_ids: pa.ChunkedArray) -> Iterator[_Block]:
        row = document = 0
        for number, ids in enumerate(doc_ids.chunks):
            chunks = {output: column.chunk(number) for output, column in self._vectors.items()}
            if any(len(chunk) != len(ids) for chunk in chunks.values()):
                raise ValueError("expected chunks of the same length in every column")
            offsets = _document_offsets(ids)
            rows = {
                output: SCORED_ROWS[output](chunk, self._device) for output, chunk in chunks.items()
            }
            yield _Block(row, document, offsets, rows)
            row, document = row + len(ids), document + len(offsets) - 1


def _batches(queries: int, top: int, by: Collection[Ranking], *, on_cpu: bool) -> list[_Batch]:
    """Divide queries into batches that are scored at once; on the CPU at least one per thread."""
    size = _QUERIES
    if on_cpu:
        size = max(min(size, -(-queries // torch.get_num_threads())), _LEAST_QUERIES)
    found = []
    for start in range(0, queries, size):
        stop = min(start + size, queries)
        found.append(_Batch(start, stop, {name: TopRows(stop - start, top) for name in by}))
    return found


def _rank(
    block: _Block, scorers: Mapping[Output, Scorer], unit: Level, weights: Weights, batch: _Batch
) -> None:
    """Score a block for a batch of queries, and add its rows or documents to the best so far."""
    first = block.first_row if unit == "passage" else block.first_document
    scores = {output: scorer(batch.start, batch.stop) for output, scorer in scorers.items()}
    for name, best in batch.best.items():
        tile = scores[name] if name != "hybrid" else weighted_mean(scores, weights)
        if unit == "document" and len(block.document_offsets) <= tile.shape[1]:
            tile = segments(tile, block.document_offsets, "max")
        best.add(tile, first, above=0.0 if name == "sparse" else -np.inf)


def _document_offsets(ids: pa.Array) -> np.ndarray:
    """Return the row at which each document of a block begins, and the end of the block."""
    if not len(ids):
        return np.zeros(1, np.int64)
    changes = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    return np.concatenate(([0], np.flatnonzero(changes) + 1, [len(ids)])).astype(np.int64)
