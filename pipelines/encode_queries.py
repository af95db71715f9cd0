"""Encodes queries with the configuration of a run, in this process, into one Parquet file.

    python -m pipelines.encode_queries conf/wiki.yaml queries.jsonl queries.parquet --id _id

    read -> tokenise -> encode -> write, a batch at a time; the file appears when it is complete

Model, outputs, query instruction, lengths and column types are those of the run's index. Needs
neither Ray nor the index.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import pyarrow as pa
import typer

from actors.errors import ConfigError, EncodeError, SourceError, StorageError
from pipelines.config.loading import load_config
from pipelines.config.run import RunConfig
from pipelines.config.sections import SourceConfig
from pipelines.index.parts import PartWriter, stored_rows
from pipelines.passages.rows import text_fault
from pipelines.source.formats.registry import FORMATS
from pipelines.source.source import Source
from pipelines.source.units import Unit
from pipelines.terminal import cli

if TYPE_CHECKING:
    from actors.encoder import Encoder

QUERY_SCHEMA = pa.schema(
    {
        "query_id": pa.string(),
        "text": pa.string(),
        "n_tokens": pa.int32(),
        "truncated": pa.bool_(),
    }
)

_BATCH_QUERIES = 256  # bounds the vectors in memory: about 30 KB per query with ColBERT of BGE-M3
_FAULTS_SHOWN = 5


class _Query(NamedTuple):
    row: int
    """The number of the row among all that are read, from 1."""
    id: str | None
    text: str | None
    fault: str
    """The reason why the query cannot be encoded, or ""."""


@dataclass
class EncodedQueries:
    """Counts of the rows that were read."""

    queries: int = 0
    tokens: int = 0
    truncated: int = 0
    faults: int = 0
    """The number of rows that are left out of the file."""
    first_faults: list[str] = field(default_factory=list)
    """The first of these rows, each with its reason."""

    def add_fault(self, row: int, query_id: str | None, reason: str) -> None:
        """Count a row that cannot be encoded."""
        self.faults += 1
        if self.faults <= _FAULTS_SHOWN:
            name = f" (id {query_id!r})" if query_id else ""
            self.first_faults.append(f"row {row:,}{name}: {reason}")


def encode_queries(config: RunConfig, source: SourceConfig, out: Path) -> EncodedQueries:
    """Write the queries of `source`, in its order, and their vectors atomically to `out`.

    Rows without an id or a text, damaged rows, and rows that the model cannot encode are left out
    and counted.

    Raises:
        SourceError: there are no queries, or none can be read as `source` says.
        ModelError: as `load_encoder`. StorageError: `out` cannot be written.
    """
    reader = Source(source)
    units = reader.units(reader.list_files())
    with _appearing_when_complete(out) as file:
        from actors.encoder import load_encoder  # late: imports torch

        encoder, found = load_encoder(config.encoder), EncodedQueries()
        colbert = config.index.colbert_storage
        types = stored_rows(QUERY_SCHEMA.empty_table(), encoder.empty(), colbert)
        with PartWriter(file, types.schema) as writer:
            queries = _read(reader, units)
            while batch := list(islice(queries, _BATCH_QUERIES)):
                for rows, vectors in _encode(encoder, batch, found):
                    writer.write(stored_rows(rows, vectors, colbert))
        if not found.queries + found.faults:
            raise SourceError(f"source.uri: expected queries at {source.described}, found none.")
    return found


def query_source(
    config: RunConfig, queries: str, *, id_column: str | None, text_column: str, format: str
) -> SourceConfig:
    """Return the source section for queries.

    The run's `source.csv` applies to queries too, and so does its `source.storage_options` if they
    are in a store of the same kind.

    Raises:
        ConfigError: the format is unknown.
    """
    formats = ("auto", *FORMATS)
    if format not in formats:
        raise ConfigError(f"--format: expected one of {', '.join(formats)}, got {format!r}.")
    stores = {uri.partition("://")[0] for uri in config.source.uris if "://" in uri}
    same_store = queries.partition("://")[0] in stores
    return SourceConfig.model_validate(
        {
            "uri": queries,
            "format": format,
            "columns": {"id": id_column, "text": text_column},
            "csv": config.source.csv,
            "storage_options": config.source.storage_options if same_store else {},
        }
    )


def _read(reader: Source, units: Sequence[Unit]) -> Iterator[_Query]:
    row = 0
    for unit in units:
        for batch in reader.read(unit):
            ids, texts = (batch.table[name].to_pylist() for name in ("doc_id", "text"))
            for i, (query_id, text) in enumerate(zip(ids, texts, strict=True)):
                row += 1
                fault = batch.faults.get(i) or text_fault(query_id, text) or ()
                yield _Query(row, query_id, text, ": ".join(filter(None, fault)))


def _encode(
    encoder: Encoder, batch: list[_Query], found: EncodedQueries
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yield rows and vectors of a batch by micro-batches, and count its faults in `found`."""
    for query in batch:
        if query.fault:
            found.add_fault(query.row, query.id, query.fault)
    good = [query for query in batch if not query.fault]
    tokens = encoder.tokenize_queries([query.text or "" for query in good])
    columns = [[q.id for q in good], [q.text for q in good], tokens.lengths, tokens.truncated]
    queries = pa.table(columns, schema=QUERY_SCHEMA)
    for part in encoder.stream(tokens.to_arrow()):
        rows, vectors = queries.slice(part.start, part.stop - part.start), part.columns
        for row, reason in part.failures.items():
            found.add_fault(good[row].row, good[row].id, f"encoder_error: {reason}")
        if part.failures:
            keep = pa.array([row not in part.failures for row in range(part.start, part.stop)])
            rows, vectors = rows.filter(keep), vectors.filter(keep)
        found.queries += rows.num_rows
        found.tokens += sum(rows["n_tokens"].to_pylist())
        found.truncated += sum(rows["truncated"].to_pylist())
        yield rows, vectors


@contextmanager
def _appearing_when_complete(out: Path) -> Iterator[Path]:
    """Yield a temporary file that is renamed to `out` at the end, or removed after an error."""
    file = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        file.touch()  # fails now, not after the model is loaded
    except OSError as error:
        raise StorageError(f"OUT: cannot write {out} ({error.strerror}).") from None
    try:
        yield file
        file.replace(out)
    finally:
        file.unlink(missing_ok=True)


def _check_out(out: str, queries: str, *, force: bool) -> Path:
    if "://" in out:
        raise StorageError(
            f"OUT: expected a local path, got {out}.", "Write a local file, then copy it there."
        )
    path = Path(out).expanduser()
    if path.is_dir():
        raise StorageError(f"OUT: expected a file, found a folder at {path}.")
    if path.exists() and Path(queries).exists() and path.samefile(queries):
        raise StorageError(f"OUT: expected a file other than QUERIES, got {path} for both.")
    if path.exists() and not force:
        raise StorageError(f"OUT: expected no file at {path}, found one.", "--force replaces it.")
    return path


@contextmanager
def _options_named() -> Iterator[None]:
    """Rename configuration keys in errors of the source to the options of this command."""
    try:
        yield
    except SourceError as error:
        texts = [
            text.replace("source.columns.", "--")
            .replace("source.format", "--format")
            .replace("source.uri", "QUERIES")
            for text in (error.message, error.remedy)
        ]
        raise type(error)(*texts) from error


app = cli.new_app()

_EPILOG = (
    "Exit codes: 0 done; 1 failed, or rows were left out (the others are in OUT); 2 the request is "
    "invalid, nothing was started; 130 interrupted.\n\n"
    "Example: python -m pipelines.encode_queries conf/wiki.yaml queries.jsonl queries.parquet "
    "--id _id"
)


@app.command(epilog=_EPILOG)
def main(
    config: Annotated[
        Path, typer.Argument(help="The YAML file of the run whose index is searched later.")
    ],
    queries: Annotated[
        str, typer.Argument(help="File of queries, in any format for documents, also compressed.")
    ],
    out: Annotated[str, typer.Argument(help="The Parquet file to write: a local path.")],
    id_column: Annotated[
        str, typer.Option("--id", help="Column of the id; null: use the position in the file.")
    ] = "id",
    text_column: Annotated[str, typer.Option("--text", help="Column of the query.")] = "text",
    format: Annotated[
        str, typer.Option(help="Format; auto: from the extension, else from the first bytes.")
    ] = "auto",
    overrides: cli.Overrides = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    verbose: cli.StackTraces = False,
) -> None:
    """Encode QUERIES with the model, outputs and query instruction of CONFIG, without Ray.

    OUT has the columns query_id, text, n_tokens, truncated and the outputs, in the order of
    QUERIES.
    """
    with cli.log_to_stderr() as log, cli.exit_with_one_line(log, verbose=verbose), _options_named():
        run = load_config(config, overrides or [])
        path = _check_out(out, queries, force=force)
        source = query_source(
            run,
            queries,
            id_column=None if id_column == "null" else id_column,
            text_column=text_column,
            format=format,
        )
        found = encode_queries(run, source, path)
        for fault in found.first_faults:
            log.say("warning", f"warning: {fault}")
        log.say(
            "done",
            f"{found.queries:,} queries, {found.tokens:,} tokens "
            f"({found.truncated:,} queries truncated) in {path}",
        )
        if found.faults:
            raise EncodeError(
                f"{found.faults:,} of {found.faults + found.queries:,} rows could not be encoded "
                "and were left out.",
            )


if __name__ == "__main__":
    app()
