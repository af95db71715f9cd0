"""An inverted index over the token ids of sparse vectors: what a query shares with each row.

Shape suffixes: Q queries, B rows, W sparse weights.
"""

from __future__ import annotations

import numpy as np

from actors.vectors import SparseVectors


class Postings:
    """For each token id the rows that have it, and with which weight."""

    def __init__(self, vectors: SparseVectors) -> None:
        order = np.argsort(vectors.indices_W, kind="stable")
        ids_W = vectors.indices_W[order]
        self._n = len(vectors)
        self._ids, firsts = np.unique(ids_W, return_index=True)
        self._offsets = np.append(firsts, len(ids_W))
        self._rows_W = vectors.rows_W.astype(np.int32)[order]
        self._values_W = vectors.values_W[order]

    def scores(self, queries: SparseVectors) -> np.ndarray:
        """Lexical matching float32 [Q, B]; 0 where nothing is shared."""
        scores_QB = np.zeros((len(queries), self._n), dtype=np.float32)
        if not len(self._ids):
            return scores_QB
        for query in range(len(queries)):
            own = slice(queries.offsets[query], queries.offsets[query + 1])
            self._add(queries.indices_W[own], queries.values_W[own], scores_QB[query])
        return scores_QB

    def _add(self, ids: np.ndarray, weights: np.ndarray, scores_B: np.ndarray) -> None:
        """A loop over the few tokens of a query: each of its postings names a row once."""
        places = np.searchsorted(self._ids, ids)
        places[places == len(self._ids)] = 0
        known = self._ids[places] == ids
        for place, weight in zip(places[known], weights[known], strict=True):
            own = slice(self._offsets[place], self._offsets[place + 1])
            scores_B[self._rows_W[own]] += self._values_W[own] * weight
