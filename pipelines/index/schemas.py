"""Defines the Arrow schemas of the files of an index, and the codes of rejects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import pyarrow as pa

from actors.encoded import SCORE
from pipelines.index.parts import COMPUTED_COLUMNS, colbert_from_bytes
from pipelines.index.records import Manifest

HASH = pa.binary(16)

PASSAGE_SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("passage_id", pa.string()),
        ("passage_no", pa.int32()),
        ("text", pa.string()),
        ("title", pa.string()),
        ("n_tokens", pa.int32()),
        ("truncated", pa.bool_()),
        ("char_start", pa.int32()),
        ("char_end", pa.int32()),
        ("passage_hash", HASH),
    ]
)
"""Columns of an output row before metadata and vectors."""
LEDGER_SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("doc_hash", HASH),
        ("unit", pa.int32()),
        ("position", pa.int64()),
        ("part", pa.string()),
        ("first_row", pa.int64()),
        ("n_rows", pa.int32()),
        ("n_tokens", pa.int64()),
    ]
)
REJECTS_SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("unit", pa.int32()),
        ("position", pa.int64()),
        ("code", pa.string()),
        ("detail", pa.string()),
        ("final", pa.bool_()),
    ]
)
UNCHANGED_SCHEMA = pa.schema(
    [("doc_id", pa.string()), ("unit", pa.int32()), ("position", pa.int64())]
)
"""Documents that a run read and found unchanged, with their current place in the source."""
FILES_SCHEMA = pa.schema(
    [("path", pa.string()), ("rows", pa.int64()), ("bytes", pa.int64()), ("sha256", pa.string())]
)
DELETIONS_SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("part", pa.string()),
        ("first_row", pa.int64()),
        ("n_rows", pa.int64()),
    ]
)
UNITS_SCHEMA = pa.schema(
    [
        ("unit", pa.int32()),
        ("format", pa.string()),
        ("documents", pa.int64()),
        ("wanted", pa.list_(pa.list_(pa.int64()))),
        ("origins", pa.list_(pa.struct([("run_id", pa.string()), ("unit", pa.int32())]))),
        (
            "pieces",
            pa.list_(
                pa.struct(
                    [
                        ("path", pa.string()),
                        ("size", pa.int64()),
                        ("etag", pa.string()),
                        ("name", pa.string()),
                        ("start", pa.int64()),
                        ("stop", pa.int64()),
                        ("row_group", pa.int32()),
                        ("documents", pa.int64()),
                    ]
                )
            ),
        ),
    ]
)
"""`documents` is null if it is known only after reading. `wanted` are ranges of documents, with
null for the end of the unit; an unchanged unit has none, and `origins` names the runs that read it
and its number in each. `name` is the name of the file in derived ids. `start` and `stop` are rows
if `row_group` is set, else bytes."""

RejectCode = Literal[
    "null_text",
    "empty_text",
    "missing_id",
    "duplicate_id",
    "bad_encoding",
    "bad_record",
    "null_query",
    "too_long",
    "encoder_error",
    "unreadable_unit",
]
FOR_NOW: frozenset[str] = frozenset({"encoder_error", "unreadable_unit"})
"""Codes of rejects that later runs try again; all other codes are final."""


def reject_table(rows: Iterable[tuple[str | None, int, int, RejectCode, str]]) -> pa.Table:
    """Return tuples (doc_id, unit, position, code, detail) as rows of REJECTS_SCHEMA."""
    full = [(*row, row[3] not in FOR_NOW) for row in rows]
    columns = zip(*full, strict=True) if full else [()] * len(REJECTS_SCHEMA)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, REJECTS_SCHEMA, strict=True)]
    return pa.table(arrays, schema=REJECTS_SCHEMA)


VALUE_TYPES = {"float16": pa.float16(), "float32": pa.float32()}
UNIT_LENGTH_TOLERANCE = {"float16": 2e-3, "float32": 1e-4}
"""Allowed difference between the length of a normalised vector and 1, by stored type. Rounding to
float16 has a relative error of at most 2**-11; computing in half precision adds as much again."""


def as_numbers(table: pa.Table, info: Manifest) -> pa.Table:
    """Return stored rows with their ColBERT vectors, if any, as numbers."""
    if "colbert" not in table.column_names:
        return table
    column = table["colbert"].combine_chunks()
    if not pa.types.is_fixed_size_binary(column.type.value_type):
        return table
    numbers = colbert_from_bytes(column, VALUE_TYPES[info.vector_dtype])
    return table.set_column(table.column_names.index("colbert"), "colbert", numbers)


def output_type(name: str, info: Manifest, *, stored: bool = True) -> pa.DataType:
    """Return the column type of an output. In parts (`stored`), ColBERT vectors may be bytes."""
    value, model = VALUE_TYPES.get(info.vector_dtype, pa.null()), info.model
    if name == "dense":
        return pa.list_(value, model.dim)
    if name == "sparse":
        return pa.struct([("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))])
    if name == SCORE:  # one number for each pair, or one for each scoring layer
        return pa.float32() if model.dim == 1 else pa.list_(pa.float32(), model.dim)
    dim = model.colbert_dim or 1
    if stored and info.colbert_storage == "bytes":
        return pa.list_(pa.binary(dim * (4 if info.vector_dtype == "float32" else 2)))
    return pa.list_(pa.list_(value, dim))


def schema_without_parts(info: Manifest) -> pa.Schema:
    """Return the schema of a view without parts; metadata columns are unknown."""
    chosen = [name for name in COMPUTED_COLUMNS if name in info.outputs]
    columns = [pa.field(name, output_type(name, info, stored=False)) for name in chosen]
    return pa.schema([*PASSAGE_SCHEMA, *columns])


LOST_SCHEMA = pa.schema([field for field in LEDGER_SCHEMA if field.name != "doc_hash"])
"""Documents with a duplicate id. `part` is null if the run found the document unchanged."""
