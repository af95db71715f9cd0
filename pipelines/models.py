"""Lists the models and rerankers with a record, or prints one record in full.

python -m pipelines.models
python -m pipelines.models BAAI/bge-m3
python -m pipelines.models --rerankers
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Annotated, Any

import typer

from actors.errors import ModelError
from actors.models.registry import (
    MODELS,
    RERANKERS,
    KnownModel,
    RerankerRecord,
    nearest_names,
    record_of,
    reranker_record,
)
from pipelines.terminal.cli import exit_with_one_line, new_app


def table() -> Iterator[str]:
    """Yield a heading, then one line per model of at most 100 columns, suitable for grep."""
    row = "{:39}  {:11}  {:10}  {:>4}  {:>6}  {:9}  {}"
    yield row.format("name", "family", "pooling", "dim", "length", "outputs", "code")
    for each in MODELS:
        outputs = "all three" if len(each.outputs) == 3 else ", ".join(each.outputs)
        code = "remote" if each.remote_code else ""
        cells = (each.name, each.family, each.pooling, each.dim, each.max_length, outputs, code)
        yield row.format(*cells).rstrip()


def describe(record: KnownModel | RerankerRecord) -> Iterator[str]:
    """Yield every field; texts are quoted, so that newlines (\\n) and final spaces are visible."""
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Mapping):
            yield _field(field.name, "none" if not value else "query and passage instruction")
            for task, (query, passage) in value.items():
                yield _field(f"  {task}", _text(query))
                yield _field("", _text(passage))
        else:
            yield _field(field.name, _text(value))


def _field(name: str, text: str) -> str:
    return f"{name:19}  {text}"


def _text(value: Any) -> str:
    if value is None:
        return "not checked"
    if isinstance(value, tuple):
        return ", ".join(value)
    return json.dumps(value, ensure_ascii=False)


app = new_app()


@app.command()
def main(
    name: Annotated[
        str | None, typer.Argument(help="One model or reranker: its hub id, or the path of a copy.")
    ] = None,
    rerankers: Annotated[bool, typer.Option("--rerankers", help="List the rerankers.")] = False,
) -> None:
    """List the known embedding models with their dimensions, lengths and instructions."""
    with exit_with_one_line():
        if rerankers and name is None:
            for record in RERANKERS:
                code = "remote code" if record.remote_code else ""
                typer.echo(f"{record.name:42}  {record.kind:11}  {code}".rstrip())
            return
        for line in table() if name is None else _described(name):
            typer.echo(line)


def _described(name: str) -> Iterator[str]:
    if record := record_of(name) or reranker_record(name):
        return describe(record)
    known = [*(record.name for record in MODELS), *(record.name for record in RERANKERS)]
    near = ", ".join(nearest_names(name, known))
    hint = f"nearest are {near}" if near else "python -m pipelines.models lists them"
    raise ModelError(f"model {name!r}: expected one with a record, found none; {hint}.")


if __name__ == "__main__":
    app()
