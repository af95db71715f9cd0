"""One text's vectors as numpy arrays, taken out of an encoder's columns and put back into them.

What an endpoint hands around: a text is answered, cached and forgotten alone, whichever others
shared its forward pass.
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
    """What was computed of one text; None where an output was not asked for."""

    n_tokens: int
    """Special tokens and instruction included."""
    truncated: bool
    """The text had more tokens than the model's length."""
    dense: np.ndarray | None = None
    """float16 or float32 [D]."""
    sparse: tuple[np.ndarray, np.ndarray] | None = None
    """Token ids int32 [W], ascending, and weights float32 [W]."""
    colbert: np.ndarray | None = None
    """float16 or float32 [n_tokens - 1, D]."""

    def has(self, outputs: Collection[Output]) -> bool:
        """Whether all of these were computed."""
        return all(getattr(self, output) is not None for output in outputs)

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        arrays = [self.dense, self.colbert, *(self.sparse or ())]
        return sum(array.nbytes for array in arrays if array is not None)

    def copy(self) -> TextVectors:
        """The same, no longer holding the whole batch in memory."""
        dense, colbert = (
            each if each is None else each.copy() for each in (self.dense, self.colbert)
        )
        sparse = self.sparse and (self.sparse[0].copy(), self.sparse[1].copy())
        return replace(self, dense=dense, sparse=sparse, colbert=colbert)

    def truncate(self, dim: int, *, normalize: bool) -> TextVectors:
        """Dense and ColBERT vectors cut to their first `dim` dimensions.

        What truncating before normalising gives, up to the rounding of the stored type: a
        normalised vector is a positive multiple of the raw one.
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
    """Each row of an encoder's columns, as views; no row may be null."""
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
    """The rows as an encoder's columns again; at least one row, each with these outputs."""
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
