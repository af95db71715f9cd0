"""What routes of several APIs have in common: texts or token ids in, dimensions, whole answers."""

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
    Field(description="Cut a text that is too long, or refuse it; as configured if not given."),
]
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
    """As `Service.encode`, the first `dim` dimensions; `field` of the request asks for them.

    Raises:
        ApiError: 422 more dimensions than there are; and as `Service.encode`.
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
    """The vectors, for an API that has no word for a text without.

    `place`: of a text in the request's body, with {} for its row; rows are counted anew after `n`.

    Raises:
        ApiError: of the first text that has none.
    """
    for row, result in enumerate(results):
        if isinstance(result, ApiError):
            raise result.at(place.format(row % n if n else row))
    return [result for result in results if isinstance(result, TextVectors)]


ARROW = "application/vnd.apache.arrow.stream"
TRUNCATED_HEADER = "X-Truncated-Texts"

# Serialising so many bytes of vectors takes about a millisecond.
_LARGE = 256 << 10


async def json_response(body: Any, results: Sequence[Outcome]) -> Response:
    """`body` as JSON, numpy arrays included; `results` are what it is made of."""
    vectors = [result for result in results if isinstance(result, TextVectors)]
    dumps = partial(orjson.dumps, body, option=orjson.OPT_SERIALIZE_NUMPY)
    is_large = sum(each.nbytes for each in vectors) > _LARGE
    content = await asyncio.to_thread(dumps) if is_large else dumps()
    return json_answer(content, sum(each.truncated for each in vectors))


def json_answer(content: bytes, truncated: int) -> Response:
    """JSON, and in a header how many texts were cut, where any was."""
    headers = {TRUNCATED_HEADER: str(truncated)} if truncated else {}
    return Response(content, 200, headers, "application/json")


def arrow_stream(
    results: Sequence[Outcome], outputs: Sequence[Output], facts: Mapping[str, str]
) -> bytes:
    """An Arrow IPC stream of one row a text: the columns of an index, and why a row has none.

    Some text has vectors; `facts`: the schema's metadata.
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
