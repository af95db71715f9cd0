"""Arrow schemas of the files of an index, and the codes of rejects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import pyarrow as pa

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
"""The output row before its metadata and vectors."""
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
"""Documents that a run read and found as the index has them: where they are now."""
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
"""`documents` is null where only reading tells; `wanted` are ranges of documents, null for the end
of the unit; none at all where the unit is as earlier runs read it: `origins` says which ones, and
as which unit of theirs. `name` is the file's in derived ids; `start` and `stop` are rows where
there is a row group, else bytes."""

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
"""Codes that are tried again; every other one is final."""


def reject_table(rows: Iterable[tuple[str | None, int, int, RejectCode, str]]) -> pa.Table:
    """(doc_id, unit, position, code, detail) as rows of REJECTS_SCHEMA."""
    full = [(*row, row[3] not in FOR_NOW) for row in rows]
    columns = zip(*full, strict=True) if full else [()] * len(REJECTS_SCHEMA)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, REJECTS_SCHEMA, strict=True)]
    return pa.table(arrays, schema=REJECTS_SCHEMA)
