"""What routes of several APIs have in common: texts or token ids in, dimensions, whole answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from actors.text_vectors import TextVectors
from pipelines.endpoint.config import Kind
from pipelines.endpoint.errors import ApiError, TextFault
from pipelines.endpoint.service import Service
from pipelines.endpoint.texts import Text

TokenIds = list[Annotated[int, Field(ge=0)]]


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
