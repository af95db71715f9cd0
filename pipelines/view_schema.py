"""Columns of a view: ColBERT as numbers, whichever way it is stored, and a view without a part."""

from __future__ import annotations

import pyarrow as pa

from actors.encoded import SCORE
from pipelines.output import COMPUTED_COLUMNS, colbert_from_bytes
from pipelines.records import Manifest
from pipelines.schemas import PASSAGE_SCHEMA

_VALUE_TYPES = {"float16": pa.float16(), "float32": pa.float32()}


def as_numbers(table: pa.Table, info: Manifest) -> pa.Table:
    """Stored rows with their ColBERT vectors, if any, as numbers."""
    if "colbert" not in table.column_names:
        return table
    column = table["colbert"].combine_chunks()
    if not pa.types.is_fixed_size_binary(column.type.value_type):
        return table
    numbers = colbert_from_bytes(column, _VALUE_TYPES[info.vector_dtype])
    return table.set_column(table.column_names.index("colbert"), "colbert", numbers)


def score_type(info: Manifest) -> pa.DataType:
    """Of a reranker's column: a number a pair, or one for each layer that scores."""
    return pa.float32() if info.model.dim == 1 else pa.list_(pa.float32(), info.model.dim)


def schema_without_parts(info: Manifest) -> pa.Schema:
    """Of an index whose every document was rejected; without its metadata columns."""
    value = _VALUE_TYPES[info.vector_dtype]
    sparse = [("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))]
    vectors = {
        "dense": pa.list_(value, info.model.dim),
        "sparse": pa.struct(sparse),
        "colbert": pa.list_(pa.list_(value, info.model.colbert_dim or 1)),
        SCORE: score_type(info),
    }
    chosen = [(name, vectors[name]) for name in COMPUTED_COLUMNS if name in info.outputs]
    return pa.schema([*PASSAGE_SCHEMA, *(pa.field(*pair) for pair in chosen)])
