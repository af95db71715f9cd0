"""Makes a committed generation live: an older one, or one that the gate held back.

    python -m pipelines.publish_generation s3://vectors/wiki        list the generations
    python -m pipelines.publish_generation s3://vectors/wiki 3      make generation 3 live

Takes no lease, so that a rollback is possible while a run writes. A run checks which generation is
live before it publishes its own; if its generation does not add to that one, it is not published.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import pyarrow as pa
import typer

from actors.errors import IndexStateError, StorageError
from pipelines.index.generations import (
    committed_generations,
    live_of,
    nothing_committed,
    publications,
    publish_next,
    read_chain,
    read_manifest,
)
from pipelines.index.reader import Index
from pipelines.index.records import Manifest
from pipelines.reports.run_report import read_report
from pipelines.store.store import Store, open_store
from pipelines.terminal.cli import IndexUri, exit_with_one_line, new_app

_ROW = "{:>10}  {:>6}  {:19}  {:>13}  {:>13}  {:>13}  {:>11}  {:13}  {}"


@dataclass(frozen=True)
class PublishResult:
    """The result of publishing a generation."""

    before: int | None
    """The generation that was live before; None if there was none."""
    other_space: bool
    """Whether the space fingerprints of the two generations differ."""


def publish_generation(store: Store, number: int) -> PublishResult:
    """Make a generation live; writes nothing if it is live already.

    Raises:
        IndexStateError: it does not exist, cannot be read, or another publication came first.
        StorageError: a file of the generation is damaged.
    """
    there = _committed(store)
    published = publications(store)
    before = live_of(published)
    if number not in there:
        gone = 0 < number <= max(*there, *published.values())
        found = "removed" if gone else "never made"
        raise IndexStateError(
            f"{store.uri}: expected one of generations {', '.join(map(str, there))}; generation "
            f"{number} was {found}."
        )
    chain = read_chain(store, number)
    _check_tables(store, chain)
    if before == number:
        return PublishResult(before, other_space=False)
    space = chain[0].space_fingerprint
    other = before in there and read_manifest(store, before).space_fingerprint != space
    publish_next(store, number, published)
    return PublishResult(before, other)


def generations_table(store: Store) -> Iterator[str]:
    """Yield a heading, then one line for each committed generation.

    Raises:
        IndexStateError: nothing is committed, or a manifest cannot be read.
    """
    there = _committed(store)
    published = publications(store)
    live = live_of(published)
    heading = ("generation", "parent", "ended", "documents", "encoded", "reused", "deleted")
    yield _ROW.format(*heading, "state", "notes")
    for number in there:
        manifest = read_manifest(store, number)
        state = "published" if number in published.values() else "not published"
        counts = manifest.counts
        figures = (counts.live_documents, counts.encoded, counts.reused, counts.deleted)
        yield _ROW.format(
            number,
            manifest.parent or "",
            manifest.ended[:19],
            *(f"{n:,}" for n in figures),
            "live" if number == live else state,
            "; ".join(_notes(store, manifest)),
        ).rstrip()


def _committed(store: Store) -> list[int]:
    there = committed_generations(store)
    if not there:
        raise nothing_committed(store)
    return there


def _check_tables(store: Store, chain: list[Manifest]) -> None:
    index = Index(store, chain)
    for manifest in chain:
        for table in manifest.tables.records():
            try:
                index.read_table(table)
            except (FileNotFoundError, StorageError, pa.ArrowException) as error:
                reason = error.message if isinstance(error, StorageError) else "no such table"
                where = f"generation {manifest.generation} of {store.uri}"
                raise IndexStateError(
                    f"{where}: expected an undamaged {table.path}, found: {reason}",
                    "The generation was not published. python -m pipelines.verify_index lists all "
                    "problems.",
                ) from None


def _notes(store: Store, manifest: Manifest) -> Iterator[str]:
    if manifest.compacts is not None:
        yield f"rewrites {manifest.compacts}"
    try:
        notes = read_report(store, manifest.generation).get("gate", [])
    except ValueError:  # the report is only shown to people
        notes = ["its report.json cannot be read"]
    yield from map(str, notes)


app = new_app()

_EPILOG = (
    "Exit codes: 0 the generation is live; 2 it does not exist, it cannot be read, or another "
    "publication came first."
)


@app.command(epilog=_EPILOG)
def main(
    uri: IndexUri,
    number: Annotated[
        int | None, typer.Argument(metavar="N", help="The generation to make live.")
    ] = None,
    show: Annotated[
        bool, typer.Option("--list", help="Only list the generations, as without N.")
    ] = False,
) -> None:
    """Make generation N of an index live; an older generation is a rollback."""
    with exit_with_one_line():
        store = open_store(uri)
        if number is None or show:
            for line in generations_table(store):
                typer.echo(line)
            return
        done = publish_generation(store, number)
        if done.before == number:
            typer.echo(f"generation {number} of {uri} is already live")
            return
        typer.echo(f"generation {number} of {uri} is live; before: {done.before or 'none'}")
        if done.other_space:
            typer.echo(
                f"warning: generation {number} has another vector space than generation "
                f"{done.before}: queries must be encoded again with its model; an endpoint with "
                "the previous model refuses to start on this index.",
                err=True,
            )


if __name__ == "__main__":
    app()
