"""What holds a shard: in this process, as a Ray actor, or as a Ray Serve deployment. No Ray here.

Rows are the shard's own, from 0. Everything that goes in and out is numpy or Arrow.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from actors.config import Output
from actors.models.cache import cache_home
from actors.search.fusion import Best, Ranking
from actors.search.shard import Shard
from pipelines.index.reader import open_index
from pipelines.search.shard_files import ROWS, ShardFiles, ShardRequest, shards_of


class ShardHost:
    """A loaded shard."""

    def __init__(self, request: ShardRequest) -> None:
        """Map its rows; on a GPU where there is one and they fit.

        Raises:
            IndexStateError, StorageError: the index cannot be read, or the disk here is full.
        """
        if request.threads:
            torch.set_num_threads(request.threads)
        index = open_index(request.uri, request.storage_options, generation=request.generation)
        parts = shards_of(index.parts, request.shards)[request.number]
        folder = Path(request.folder).expanduser() if request.folder else cache_home() / "search"
        files = ShardFiles(index, parts, folder).open([ROWS, *request.outputs])
        self._rows = files[ROWS]
        vectors = {output: files[output][output] for output in request.outputs}
        self._vectors = pa.table(vectors)
        self._shard = Shard(self._rows["doc_id"], vectors, device=_device(vectors))

    def n_rows(self) -> int:
        """How many it has; also the sign that it is loaded."""
        return len(self._shard)

    def rank(
        self, queries: pa.Table, by: Collection[Ranking], top: int, **how: Any
    ) -> dict[Ranking, Best]:
        """`Shard.rank`."""
        return self._shard.rank(queries, by, top, **how)

    def score(self, queries: pa.Table, query_M: np.ndarray, row_M: np.ndarray) -> pa.Table:
        """`Shard.score`, and the first and the stop row of each row's document."""
        table = self._shard.score(queries, query_M, row_M)
        first, stop = self._shard.document_rows(row_M).T
        return table.append_column("first", pa.array(first)).append_column("stop", pa.array(stop))

    def take(self, row_N: np.ndarray, columns: Sequence[str] | None, vectors: bool) -> pa.Table:
        """These rows, in this order: columns of the index, with its vectors or without."""
        rows = self._rows if columns is None else self._rows.select(columns)
        if vectors:
            for name in self._vectors.column_names:
                rows = rows.append_column(name, self._vectors[name])
        return rows.take(pa.array(row_N, pa.int64())).combine_chunks()


def _device(vectors: dict[Output, pa.ChunkedArray]) -> str:
    """The GPU this process sees, if dense and ColBERT vectors fit beside what is there."""
    if not torch.cuda.is_available():
        return "cpu"
    free, _ = torch.cuda.mem_get_info()
    size = sum(column.nbytes for name, column in vectors.items() if name != "sparse")
    return "cuda" if size * 1.2 < free else "cpu"
