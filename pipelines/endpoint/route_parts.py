"""What routes of several APIs have in common: texts or token ids in, dimensions, whole answers."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import orjson
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from actors.config import Output
from actors.text_vectors import TextVectors, columns_of
from pipelines.endpoint.config import Kind
from pipelines.endpoint.errors import ApiError, TextFault
from pipelines.endpoint.service import Service
from pipelines.endpoint.texts import Text

TokenIds = list[Annotated[int, Field(ge=0)]]
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class Body(BaseModel):
    """A request's body; unknown fields are errors, so that a typo is heard."""

    model_config = ConfigDict(extra="forbid")


def texts_of(
    given: str | list[int] | list[str] | list[list[int]], kind: Kind, service: Service, field: str
) -> list[Text]:
    """Texts or token ids, one or several.

    Raises:
        ApiError: 400 none, 422 an id that is not in the vocabulary.
    """
    many: list[Any] = given if isinstance(given, list) else [given]
    if many and isinstance(many[0], int):
        many = [many]
    if not many:
        raise ApiError(400, "empty", "expected a text, found none", field=field)
    return [
        Text(kind, each)
        if isinstance(each, str)
        else Text(kind, "", ids=_checked(each, service, f"{field}[{row}]"))
        for row, each in enumerate(many)
    ]


def _checked(ids: list[int], service: Service, field: str) -> tuple[int, ...]:
    if not ids:
        raise ApiError(400, "empty", "expected token ids, found none", field=field)
    size = service.encoder.vocab_size
    wrong = next((i for i in ids if i >= size), None)
    if wrong is not None:
        raise ApiError(
            422,
            "token_ids",
            f"expected token ids below {size} (of {service.encoder.info.name}), found {wrong}; "
            "LangChain sends texts with check_embedding_ctx_length=False",
            field=field,
        )
    return tuple(ids)


def check_dim(dim: int | None, service: Service, field: str) -> None:
    """Refuse more dimensions than there are.

    Raises:
        ApiError: 422.
    """
    if dim is not None and dim > service.encoder.info.dim:
        raise ApiError(
            422,
            "no_such_dim",
            f"expected at most {service.encoder.info.dim} dimensions, got {dim}",
            field=field,
        )


def cut_dims(
    results: Sequence[TextVectors | TextFault], dim: int, service: Service
) -> list[TextVectors | TextFault]:
    """Vectors of fewer dimensions."""
    normalize = service.encoder.info.normalize
    return [
        result.truncate(dim, normalize=normalize) if isinstance(result, TextVectors) else result
        for result in results
    ]


def all_vectors(
    results: Sequence[TextVectors | TextFault], field: str, n: int | None = None
) -> list[TextVectors]:
    """The vectors, for an API that has no word for a text without.

    `n`: rows are counted anew after so many.

    Raises:
        ApiError: of the first text that has none.
    """
    for row, result in enumerate(results):
        if isinstance(result, TextFault):
            raise result.as_error(row % n if n else row, field)
    return [result for result in results if isinstance(result, TextVectors)]


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
