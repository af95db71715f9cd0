"""Shared parts of the routes: request fields, conversion of inputs, JSON and Arrow responses."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import orjson
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from actors.config import Output
from actors.text_vectors import TextVectors, columns_of
from pipelines.endpoint.config import Kind
from pipelines.endpoint.errors import ApiError
from pipelines.endpoint.service import Outcome, Service
from pipelines.endpoint.texts import Text

TokenIds = list[Annotated[int, Field(ge=0)]]
Dimensions = Annotated[int, Field(ge=1)] | None
Truncate = Annotated[
    bool | None,
    Field(description="true: cut texts that are too long; false: refuse. Default: as configured."),
]
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class Body(BaseModel):
    """A request body in which unknown fields are errors, so that a typing error is noticed."""

    model_config = ConfigDict(extra="forbid")


def texts_of(
    given: str | list[int] | list[str] | list[list[int]], kind: Kind, service: Service, field: str
) -> list[Text]:
    """Return the texts of a request, which gives one or several texts or lists of token ids.

    Raises:
        ApiError: 400 no text or no ids, 422 an id that is not in the vocabulary.
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
        message = (
            f"expected token ids below {size} (of {service.encoder.info.name}), found {wrong}; "
            "LangChain sends texts with check_embedding_ctx_length=False"
        )
        raise ApiError(422, "token_ids", message, field=field)
    return tuple(ids)


async def encode_dims(
    service: Service,
    texts: Sequence[Text],
    outputs: Collection[Output],
    truncate: bool | None = None,
    *,
    dim: int | None,
    field: str,
) -> list[Outcome]:
    """Encode, and keep the first `dim` dimensions (None: all). `field`: name of `dim` in errors.

    Raises:
        ApiError: 422 `dim` exceeds the model's dimension. Also raises as `Service.encode`.
    """
    info = service.encoder.info
    if dim is not None and dim > info.dim:
        message = f"expected at most {info.dim} dimensions, got {dim}"
        raise ApiError(422, "no_such_dim", message, field=field)
    results = await service.encode(texts, outputs, truncate=truncate)
    if dim is None:
        return results
    return [
        each.truncate(dim, normalize=info.normalize) if isinstance(each, TextVectors) else each
        for each in results
    ]


def all_vectors(results: Sequence[Outcome], place: str, n: int | None = None) -> list[TextVectors]:
    """Return the vectors of all texts, for an API that cannot report errors of single texts.

    `place`: field of a text in the request, with {} for its row. `n`: {} restarts at 0 after `n`.

    Raises:
        ApiError: the error of the first text that has no vectors.
    """
    for row, result in enumerate(results):
        if isinstance(result, ApiError):
            raise result.at(place.format(row % n if n else row))
    return [result for result in results if isinstance(result, TextVectors)]


ARROW = "application/vnd.apache.arrow.stream"
TRUNCATED_HEADER = "X-Truncated-Texts"

# Bytes of vectors. Serialising this amount takes about a millisecond.
_LARGE = 256 << 10


async def json_response(body: Any, results: Sequence[Outcome]) -> Response:
    """Return `body` as JSON, numpy arrays included. `results`: the outcomes that `body` shows."""
    vectors = [result for result in results if isinstance(result, TextVectors)]
    dumps = partial(orjson.dumps, body, option=orjson.OPT_SERIALIZE_NUMPY)
    is_large = sum(each.nbytes for each in vectors) > _LARGE
    content = await asyncio.to_thread(dumps) if is_large else dumps()
    return json_answer(content, sum(each.truncated for each in vectors))


def json_answer(content: bytes, truncated: int) -> Response:
    """Return a JSON response. If texts were truncated, a header contains their number."""
    headers = {TRUNCATED_HEADER: str(truncated)} if truncated else {}
    return Response(content, 200, headers, "application/json")


def arrow_stream(
    results: Sequence[Outcome], outputs: Sequence[Output], facts: Mapping[str, str]
) -> bytes:
    """Return an Arrow IPC stream with one row per text: an index's columns, and `fault`, the error.

    At least one text must have vectors. `facts`: the metadata of the schema.
    """
    known = [result if isinstance(result, TextVectors) else None for result in results]
    places = itertools.count()
    rows = pa.array([each and next(places) for each in known], pa.int64())
    vectors = columns_of([each for each in known if each], outputs).take(rows)
    fault = [result.message if isinstance(result, ApiError) else None for result in results]
    columns = {
        "n_tokens": pa.array([each and each.n_tokens for each in known], pa.int32()),
        "truncated": pa.array([each and each.truncated for each in known], pa.bool_()),
        "fault": pa.array(fault, pa.string()),
    }
    columns |= {name: vectors[name] for name in vectors.column_names}
    table = pa.table(columns).replace_schema_metadata(dict(facts))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
