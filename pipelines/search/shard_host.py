"""Host a shard in this process, as a Ray actor, or as a Ray Serve deployment. Does not import Ray.

Row numbers start at 0 in each shard. Arguments and results are numpy arrays or Arrow tables.
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
    """A loaded shard with the columns of its rows."""

    def __init__(self, request: ShardRequest) -> None:
        """Map the rows, and copy their vectors to a GPU if there is one and they fit.

        Raises:
            IndexStateError, StorageError: the index cannot be read, or the local disk is full.
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
        """Return the number of rows. An answer also means that the shard is loaded."""
        return len(self._shard)

    def rank(
        self, queries: pa.Table, by: Collection[Ranking], top: int, **how: Any
    ) -> dict[Ranking, Best]:
        """Call `Shard.rank`."""
        return self._shard.rank(queries, by, top, **how)

    def score(self, queries: pa.Table, query_M: np.ndarray, row_M: np.ndarray) -> pa.Table:
        """Return `Shard.score` with `first` and `stop`, the bounds of each row's document."""
        table = self._shard.score(queries, query_M, row_M)
        first, stop = self._shard.document_rows(row_M).T
        return table.append_column("first", pa.array(first)).append_column("stop", pa.array(stop))

    def take(self, row_N: np.ndarray, columns: Sequence[str] | None, vectors: bool) -> pa.Table:
        """Return columns of these rows, in this order, with or without vectors."""
        rows = self._rows if columns is None else self._rows.select(columns)
        if vectors:
            for name in self._vectors.column_names:
                rows = rows.append_column(name, self._vectors[name])
        return rows.take(pa.array(row_N, pa.int64())).combine_chunks()


def _device(vectors: dict[Output, pa.ChunkedArray]) -> str:
    """Return "cuda" if this process sees a GPU and dense and ColBERT vectors fit, else "cpu"."""
    if not torch.cuda.is_available():
        return "cpu"
    free, _ = torch.cuda.mem_get_info()
    size = sum(column.nbytes for name, column in vectors.items() if name != "sparse")
    return "cuda" if size * 1.2 < free else "cpu"
