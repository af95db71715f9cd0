"""Convert between an encoder's columns and the vectors of single texts as numpy arrays.

The endpoint answers, caches and evicts each text separately, although texts share forward passes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from actors.config import Output
from actors.vectors import (
    SparseVectors,
    TokenVectors,
    dense_vectors,
    fixed_size_lists,
    sparse_column,
    token_column,
)


@dataclass(frozen=True, kw_only=True)
class TextVectors:
    """The vectors of one text; an output that was not requested is None."""

    n_tokens: int
    """Number of tokens, special tokens and instruction included."""
    truncated: bool
    """Whether the text had more tokens than the model's limit."""
    dense: np.ndarray | None = None
    """float16 or float32 [D]."""
    sparse: tuple[np.ndarray, np.ndarray] | None = None
    """Token ids int32 [W], ascending, and weights float32 [W]."""
    colbert: np.ndarray | None = None
    """float16 or float32 [n_tokens - 1, D]."""

    def has(self, outputs: Collection[Output]) -> bool:
        """Return whether all given outputs were computed."""
        return all(getattr(self, output) is not None for output in outputs)

    @property
    def nbytes(self) -> int:
        """Total bytes of the arrays."""
        arrays = [self.dense, self.colbert, *(self.sparse or ())]
        return sum(array.nbytes for array in arrays if array is not None)

    def copy(self) -> TextVectors:
        """Return a copy that does not keep the whole batch in memory."""
        dense, colbert = (
            each if each is None else each.copy() for each in (self.dense, self.colbert)
        )
        sparse = self.sparse and (self.sparse[0].copy(), self.sparse[1].copy())
        return replace(self, dense=dense, sparse=sparse, colbert=colbert)

    def truncate(self, dim: int, *, normalize: bool) -> TextVectors:
        """Return the vectors with dense and ColBERT truncated to their first `dim` dimensions.

        The result equals truncation before normalisation, up to rounding of the stored type, since
        a normalised vector is a positive multiple of the raw vector.
        """

        def cut(vectors: np.ndarray | None) -> np.ndarray | None:
            if vectors is None:
                return None
            short = vectors[..., :dim].astype(np.float32)
            if normalize:
                norms = np.linalg.norm(short, axis=-1, keepdims=True)
                short /= np.maximum(norms, 1e-12)  # as torch.nn.functional.normalize
            return short.astype(vectors.dtype)

        return replace(self, dense=cut(self.dense), colbert=cut(self.colbert))


def rows_of(
    columns: pa.Table, n_tokens: Sequence[int], truncated: Sequence[bool]
) -> list[TextVectors]:
    """Return the rows of an encoder's columns as views; no row may be null."""
    own: dict[str, Sequence[Any]] = {"n_tokens": n_tokens, "truncated": truncated}
    if "dense" in columns.column_names:
        own["dense"] = list(dense_vectors(columns["dense"]))
    if "sparse" in columns.column_names:
        weights = SparseVectors.of(columns["sparse"])
        spans = [slice(*span) for span in pairwise(weights.offsets)]
        own["sparse"] = [(weights.indices_W[span], weights.values_W[span]) for span in spans]
    if "colbert" in columns.column_names:
        tokens = TokenVectors.of(columns["colbert"])
        own["colbert"] = [tokens.vectors_TD[slice(*span)] for span in pairwise(tokens.offsets)]
    return [
        TextVectors(**dict(zip(own, row, strict=True))) for row in zip(*own.values(), strict=True)
    ]


def columns_of(rows: Sequence[TextVectors], outputs: Sequence[Output]) -> pa.Table:
    """Return rows as an encoder's columns; needs at least one row, each with these outputs."""
    columns: dict[str, pa.Array] = {}
    if "dense" in outputs:
        dense = [row.dense for row in rows if row.dense is not None]
        columns["dense"] = fixed_size_lists(np.stack(dense))
    if "sparse" in outputs:
        sparse = [row.sparse for row in rows if row.sparse is not None]
        ids, weights = (np.concatenate(part) for part in zip(*sparse, strict=True))
        columns["sparse"] = sparse_column([len(own) for own, _ in sparse], ids, weights)
    if "colbert" in outputs:
        colbert = [row.colbert for row in rows if row.colbert is not None]
        columns["colbert"] = token_column([*map(len, colbert)], np.concatenate(colbert))
    return pa.table(columns)
