"""Make a committed generation the live one: back to an older one, or on to one that was held back.

    python -m pipelines.publish_generation s3://vectors/wiki        which there are
    python -m pipelines.publish_generation s3://vectors/wiki 3      make 3 live

Takes no lease, so that a roll back is possible while a run writes: a run looks which generation is
live when it publishes its own, and leaves it unpublished if it does not add to that one.
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
    """What was done."""

    before: int | None
    """The generation that was live; None: none was."""
    other_space: bool
    """Its vectors may not be compared with those that are live now."""


def publish_generation(store: Store, number: int) -> PublishResult:
    """Make a generation live; nothing is written where it is.

    Raises:
        IndexStateError: it is not there, it cannot be read, or another publication came first.
        StorageError: the same, of damaged files.
    """
    there = _committed(store)
    published = publications(store)
    before = live_of(published)
    if number not in there:
        gone = 0 < number <= max(*there, *published.values())
        found = "one that was removed (vacuumed)" if gone else "one that was never made"
        raise IndexStateError(
            f"{store.uri}: expected one of generations {', '.join(map(str, there))}; generation "
            f"{number} is {found}."
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
    """A heading, then a line for each generation that is there.

    Raises:
        IndexStateError: there is none, or a manifest that cannot be read.
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
                    f"{where}: expected {table.path} as it was written, found: {reason}",
                    "It is not published. python -m pipelines.verify_index lists all that is "
                    "wrong.",
                ) from None


def _notes(store: Store, manifest: Manifest) -> Iterator[str]:
    if manifest.compacts is not None:
        yield f"rewrites {manifest.compacts}"
    try:
        notes = read_report(store, manifest.generation).get("gate", [])
    except ValueError:  # it is for people, and nothing rests on it
        notes = ["its report.json cannot be read"]
    yield from map(str, notes)


app = new_app()

_EPILOG = (
    "Exit codes: 0 it is live; 2 it is not there, it cannot be read, or another publication came "
    "first."
)


@app.command(epilog=_EPILOG)
def main(
    uri: IndexUri,
    number: Annotated[
        int | None, typer.Argument(metavar="N", help="The generation that shall be live.")
    ] = None,
    show: Annotated[
        bool, typer.Option("--list", help="Only show which there are, as without N.")
    ] = False,
) -> None:
    """Make generation N of an index live: roll back, or forward."""
    with exit_with_one_line():
        store = open_store(uri)
        if number is None or show:
            for line in generations_table(store):
                typer.echo(line)
            return
        done = publish_generation(store, number)
        if done.before == number:
            typer.echo(f"generation {number} of {uri} is live already")
            return
        typer.echo(f"generation {number} of {uri} is live; before: {done.before or 'none'}")
        if done.other_space:
            typer.echo(
                f"warning: generation {number} is of another vector space than generation "
                f"{done.before}: queries must be encoded anew, with its model; an endpoint that "
                "has the other one refuses to start on this index.",
                err=True,
            )


if __name__ == "__main__":
    app()
