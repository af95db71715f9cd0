"""Convert output columns between Arrow and numpy.

Columns may be sliced or chunked; rows in one buffer are not copied. Imports no torch. Shape
suffixes: N rows or passages, T tokens, W sparse weights, D dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from actors.errors import EncodeError

if TYPE_CHECKING:
    from actors.network.heads import Vectors


Column: TypeAlias = Any  # pa.Array | pa.ChunkedArray: pyarrow has no types


@dataclass(frozen=True)
class SparseVectors:
    """Lexical weights of N rows; row i is [offsets[i], offsets[i + 1])."""

    indices_W: np.ndarray
    """Token ids as int32, ascending within a row."""
    values_W: np.ndarray
    """Weights as float32."""
    offsets: np.ndarray
    """int64 [N + 1], from 0."""

    @classmethod
    def of(cls, rows: SparseVectors | Column | Sequence[Mapping[int, float]]) -> SparseVectors:
        """Wrap a Struct<indices, values> column without a copy, or convert {token id: weight} rows.

        Raises:
            EncodeError: a row is null.
            TypeError: the column has another type.
            ValueError: the token ids of a row do not ascend.
        """
        if isinstance(rows, SparseVectors):
            return rows
        if isinstance(rows, Sequence):
            maps = [sorted((int(i), w) for i, w in row.items()) for row in rows]
            flat = np.array([pair for row in maps for pair in row], np.float64).reshape(-1, 2)
            offsets = np.cumsum([0, *map(len, maps)])
            return cls(flat[:, 0].astype(np.int32), flat[:, 1].astype(np.float32), offsets)
        array = _one_array(rows)
        if not (pa.types.is_struct(array.type) and {"indices", "values"} <= set(array.type.names)):
            raise TypeError(f"expected Struct<indices, values>, got {array.type}")
        indices, offsets = _lists(array.field("indices"))
        values, other = _lists(array.field("values"))
        if not np.array_equal(offsets, other):
            raise ValueError("expected as many values as indices in every row")
        vectors = cls(_numbers(indices), _numbers(values), offsets)
        if (np.diff(vectors.keys_W) <= 0).any():
            raise ValueError("expected indices that ascend within a row")
        return vectors

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def rows_W(self) -> np.ndarray:
        """Row of each weight, int [W]."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def keys_W(self) -> np.ndarray:
        """Row and token id combined in one ascending number, int64 [W]."""
        return np.asarray((self.rows_W << 32) | self.indices_W)


@dataclass(frozen=True)
class TokenVectors:
    """ColBERT vectors of N rows; row i is [offsets[i], offsets[i + 1])."""

    vectors_TD: np.ndarray
    """Vectors as float16 or float32."""
    offsets: np.ndarray
    """int64 [N + 1], from 0."""

    @classmethod
    def of(
        cls, rows: TokenVectors | Column | Sequence[np.ndarray], dtype: type = np.float16
    ) -> TokenVectors:
        """Wrap a List<FixedSizeList[D]> column without a copy, or join one [tokens, D] array a row.

        `dtype`: type of the numbers in a List<FixedSizeBinary> column (ColBERT stored as bytes).

        Raises:
            EncodeError: a row is null.
            TypeError: the column has another type.
        """
        if isinstance(rows, TokenVectors):
            return rows
        if isinstance(rows, Sequence):
            return cls(np.concatenate(rows), np.cumsum([0, *map(len, rows)]))
        vectors, offsets = _lists(_one_array(rows))
        if not pa.types.is_fixed_size_binary(vectors.type):
            return cls(dense_vectors(vectors), offsets)
        _without_nulls(vectors)
        width = vectors.type.byte_width
        data = memoryview(vectors.buffers()[1] or b"")
        data = data[vectors.offset * width : (vectors.offset + len(vectors)) * width]
        dim = width // np.dtype(dtype).itemsize
        return cls(np.frombuffer(data, dtype).reshape(-1, dim), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1


def dense_vectors(rows: np.ndarray | Column) -> np.ndarray:
    """Return a FixedSizeList<half|float>[D] column as [N, D] without a copy; keep a numpy array.

    Raises:
        EncodeError: a row is null.
        TypeError: the column has another type.
    """
    if isinstance(rows, np.ndarray):
        return rows
    array = _one_array(rows)
    if not pa.types.is_fixed_size_list(array.type):
        raise TypeError(f"expected FixedSizeList<half|float>, got {array.type}")
    return _numbers(array.flatten()).reshape(len(array), array.type.list_size)


def _one_array(rows: Column) -> Any:
    array = rows.combine_chunks() if isinstance(rows, pa.ChunkedArray) else rows
    if not isinstance(array, pa.Array):
        raise TypeError(f"expected an Arrow column, got {type(rows).__name__}")
    _without_nulls(array)
    return array


def _without_nulls(array: Any) -> None:
    if array.null_count:
        raise EncodeError(
            f"expected vectors in all of {len(array)} rows, found {array.null_count} nulls.",
            "Remove the rows that could not be encoded.",
        )


def _lists(array: Any) -> tuple[Any, np.ndarray]:
    """Return the values of a list column's rows, and offsets [N + 1] into them."""
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        raise TypeError(f"expected a list column, got {array.type}")
    _without_nulls(array)
    offsets = array.offsets.to_numpy().astype(np.int64)
    return array.flatten(), offsets - offsets[0]


def _numbers(array: Any) -> np.ndarray:
    _without_nulls(array)
    return np.asarray(array.to_numpy(zero_copy_only=True))


def to_arrow(
    vectors: Vectors, input_ids: np.ndarray, cu_seqlens: np.ndarray, non_lexical: np.ndarray
) -> pa.Table:
    """Convert vectors on the host to the output columns.

    `input_ids`: int32 [T]; `cu_seqlens`: int32 [N + 1]; `non_lexical`: token ids that never enter a
    sparse vector. Columns: dense FixedSizeList<half|float>[D], sparse Struct<indices: List<int32>,
    values: List<float>> with sorted indices, colbert List<FixedSizeList<half|float>[D]> with
    n_tokens - 1 vectors per passage.
    """
    columns: dict[str, pa.Array] = {}
    if vectors.dense_ND is not None:
        columns["dense"] = fixed_size_lists(vectors.dense_ND.numpy())
    if vectors.sparse_T is not None:
        weights = vectors.sparse_T.numpy()
        columns["sparse"] = sparse_vectors(weights, input_ids, cu_seqlens, non_lexical)
    if vectors.colbert_TD is not None:
        lengths = np.maximum(np.diff(cu_seqlens) - 1, 0)
        columns["colbert"] = token_column(lengths, vectors.colbert_TD.numpy())
    return pa.table(columns)


def fixed_size_lists(rows: np.ndarray) -> pa.FixedSizeListArray:
    """Return [N, D] as FixedSizeList[D] without a copy."""
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def token_column(lengths: np.ndarray | Sequence[int], vectors: np.ndarray) -> pa.ListArray:
    """Return [T, D] as List<FixedSizeList[D]> without a copy, `lengths` vectors per row."""
    return pa.ListArray.from_arrays(_list_offsets(lengths), fixed_size_lists(vectors))


def sparse_column(
    lengths: np.ndarray | Sequence[int], indices_W: np.ndarray, values_W: np.ndarray
) -> pa.StructArray:
    """Return token ids int32 and weights float32 as Struct<indices, values>, `lengths` per row."""
    offsets = _list_offsets(lengths)
    lists = [pa.ListArray.from_arrays(offsets, pa.array(part)) for part in (indices_W, values_W)]
    return pa.StructArray.from_arrays(lists, names=["indices", "values"])


def _list_offsets(lengths: np.ndarray | Sequence[int]) -> pa.Array:
    return pa.array(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32))


def sparse_vectors(
    weights: np.ndarray, input_ids: np.ndarray, cu_seqlens: np.ndarray, non_lexical: np.ndarray
) -> pa.StructArray:
    """Return the maximum weight per passage and token id, without zeros and `non_lexical` ids.

    Computes a segment maximum over sorted (passage, id) keys, without a passage-by-vocabulary
    matrix.
    """
    n = len(cu_seqlens) - 1
    passage = np.repeat(np.arange(n, dtype=np.int64), np.diff(cu_seqlens))
    lexical = (weights > 0) & ~np.isin(input_ids, non_lexical)
    keys = (passage[lexical] << 32) | input_ids[lexical]
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    firsts = np.flatnonzero(np.diff(keys, prepend=-1))
    maxima = np.maximum.reduceat(weights[lexical][order], firsts)
    keys = keys[firsts]
    lengths = np.bincount(keys >> 32, minlength=n)
    return sparse_column(lengths, (keys & 0xFFFFFFFF).astype(np.int32), maxima.astype(np.float32))
