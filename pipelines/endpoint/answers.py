"""Answers as bytes: JSON of numpy arrays, Arrow IPC; large ones off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from starlette.responses import Response

from actors.config import Output
from actors.text_vectors import TextVectors, columns_of
from pipelines.endpoint.errors import TextFault

ARROW = "application/vnd.apache.arrow.stream"
TRUNCATED_HEADER = "X-Truncated-Texts"

# Serialising so many bytes of vectors takes about a millisecond.
_LARGE = 256 << 10


async def json_response(
    body: Any, results: Sequence[TextVectors | TextFault], headers: Mapping[str, str] | None = None
) -> Response:
    """`body` as JSON, numpy arrays included; `results` are what it is made of."""
    vectors = [result for result in results if isinstance(result, TextVectors)]
    if sum(each.nbytes for each in vectors) > _LARGE:
        content = await asyncio.to_thread(_dumps, body)
    else:
        content = _dumps(body)
    truncated = sum(each.truncated for each in vectors)
    said = {TRUNCATED_HEADER: str(truncated)} if truncated else {}
    return Response(content, 200, {**said, **(headers or {})}, "application/json")


def _dumps(body: Any) -> bytes:
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def sparse_json(vectors: TextVectors) -> dict[str, np.ndarray] | None:
    """Indices and values, as in an index's column."""
    if vectors.sparse is None:
        return None
    return {"indices": vectors.sparse[0], "values": vectors.sparse[1]}


async def arrow_response(
    results: Sequence[TextVectors | TextFault],
    outputs: Sequence[Output],
    empty: pa.Table,
    facts: Mapping[str, str],
) -> Response:
    """An Arrow IPC stream of one row a text: the columns of an index, and why a row has none.

    `empty`: the types of columns that no text has; `facts`: the schema's metadata.
    """
    content = await asyncio.to_thread(_arrow, results, outputs, empty, facts)
    return Response(content, media_type=ARROW)


def _arrow(
    results: Sequence[TextVectors | TextFault],
    outputs: Collection[Output],
    empty: pa.Table,
    facts: Mapping[str, str],
) -> bytes:
    good = [result for result in results if isinstance(result, TextVectors)]
    chosen = [name for name in empty.column_names if name in outputs]
    vectors = columns_of(good, chosen) if good else empty.select(chosen)
    places = np.cumsum([isinstance(result, TextVectors) for result in results]) - 1
    rows = [
        int(place) if isinstance(result, TextVectors) else None
        for place, result in zip(places, results, strict=True)
    ]
    vectors = vectors.take(pa.array(rows, pa.int64()))
    known = [result if isinstance(result, TextVectors) else None for result in results]
    fault = [result.message if isinstance(result, TextFault) else None for result in results]
    columns = {
        "n_tokens": pa.array([each and each.n_tokens for each in known], pa.int32()),
        "truncated": pa.array([each and each.truncated for each in known], pa.bool_()),
        "fault": pa.array(fault, pa.string()),
    }
    for name in chosen:
        columns[name] = vectors[name]
    table = pa.table(columns).replace_schema_metadata(dict(facts))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
