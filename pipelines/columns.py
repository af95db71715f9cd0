"""Whether a file has the columns a configuration names, of types that can be used."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from actors.errors import SourceError
from pipelines.config import Columns


def check_columns(columns: Columns, path: str, schema: pa.Schema) -> None:
    """Every configured column is there, and id, text and title have types that fit.

    Raises:
        SourceError: naming the key, the file, and what it has instead.
    """
    present = ", ".join(schema.names)
    named = {"id": columns.id, "text": columns.text, "title": columns.title}
    named |= {f"metadata[{i}]": name for i, name in enumerate(columns.metadata)}
    for key, name in named.items():
        if name is not None and name not in schema.names:
            raise SourceError(
                f"source.columns.{key}: expected a column {name!r} in {path}, found {present}.",
            )
    for key, name in (("id", columns.id), ("text", columns.text), ("title", columns.title)):
        if name is None:
            continue
        kind = schema.field(name).type
        if not (_is_text(kind) or (key == "id" and pa.types.is_integer(kind))):
            wanted = "strings or integers" if key == "id" else "strings"
            raise SourceError(
                f"source.columns.{key}: expected {wanted} in {name!r} of {path}, found {kind}."
            )


def check_metadata(
    columns: Columns,
    found: Mapping[str, pa.DataType],
    path: str,
    expected: Mapping[str, pa.DataType],
    first_path: str,
) -> None:
    """Metadata goes into the index as it is: two types would be two schemas in one index.

    Raises:
        SourceError: a type other than in the first file.
    """
    for i, name in enumerate(columns.metadata):
        if found[name] != expected[name]:
            raise SourceError(
                f"source.columns.metadata[{i}]: expected {expected[name]} for {name!r} in "
                f"{path}, as in {first_path}, found {found[name]}.",
                "Give the column one type in all files, or leave it out.",
            )


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    kinds = pa.types
    # A column of nothing but nulls (an empty pandas partition) has no type of its own.
    tests = (kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_null)
    return any(test(kind) for test in tests)
