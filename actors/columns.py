"""From vectors in host memory to the output columns, as Arrow. Imports no torch.

Shape suffixes: T tokens, N passages, D dimension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from actors.heads import Vectors


def to_arrow(
    vectors: Vectors, input_ids: np.ndarray, cu_seqlens: np.ndarray, non_lexical: np.ndarray
) -> pa.Table:
    """Vectors on the host as the output columns.

    input_ids int32 [T], cu_seqlens int32 [N + 1]; non_lexical: token ids that
    never enter a sparse vector. Columns: dense FixedSizeList<half|float>[D], sparse
    Struct<indices: List<int32>, values: List<float32>> with sorted indices, colbert
    List<FixedSizeList<half|float>[D]> with n_tokens - 1 vectors a passage.
    """
    columns: dict[str, pa.Array] = {}
    if vectors.dense_ND is not None:
        columns["dense"] = fixed_size_lists(vectors.dense_ND.numpy())
    if vectors.sparse_T is not None:
        weights = vectors.sparse_T.numpy()
        columns["sparse"] = sparse_vectors(weights, input_ids, cu_seqlens, non_lexical)
    if vectors.colbert_TD is not None:
        lengths = np.maximum(np.diff(cu_seqlens) - 1, 0)
        offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int32)))
        rows = fixed_size_lists(vectors.colbert_TD.numpy())
        columns["colbert"] = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), rows)
    return pa.table(columns)


def fixed_size_lists(rows: np.ndarray) -> pa.FixedSizeListArray:
    """[N, D] as FixedSizeList[D], without a copy."""
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def sparse_vectors(
    weights: np.ndarray, input_ids: np.ndarray, cu_seqlens: np.ndarray, non_lexical: np.ndarray
) -> pa.StructArray:
    """Maximum weight per (passage, token id), zero weights and `non_lexical` ids dropped.

    A segment maximum over sorted (passage, id) keys: no matrix of passages by vocabulary.
    """
    n = len(cu_seqlens) - 1
    passage = np.repeat(np.arange(n, dtype=np.int64), np.diff(cu_seqlens))
    lexical = (weights > 0) & ~np.isin(input_ids, non_lexical)
    keys = (passage[lexical] << 32) | input_ids[lexical]
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    firsts = np.flatnonzero(np.diff(keys, prepend=-1))
    maxima = (
        np.maximum.reduceat(weights[lexical][order], firsts)
        if len(firsts)
        else np.empty(0, dtype=np.float32)
    )
    keys = keys[firsts]
    offsets = pa.array(np.searchsorted(keys >> 32, np.arange(n + 1)).astype(np.int32))
    indices = pa.array((keys & 0xFFFFFFFF).astype(np.int32))
    return pa.StructArray.from_arrays(
        [
            pa.ListArray.from_arrays(offsets, indices),
            pa.ListArray.from_arrays(offsets, pa.array(maxima.astype(np.float32))),
        ],
        names=["indices", "values"],
    )
