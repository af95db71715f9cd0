"""Checks every generation, table and file of an index against its manifests.

python -m pipelines.verify_index s3://vectors/wiki           check sizes, one request per file
python -m pipelines.verify_index s3://vectors/wiki --deep    check every byte, row and vector
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
import typer

from actors.errors import StorageError
from pipelines.index.records import FileRecord
from pipelines.maintain.audit import Generation, Problems, chain_of, one_line, read_committed
from pipelines.maintain.verify import check_deep
from pipelines.store.store import Store, open_store
from pipelines.terminal.cli import IndexUri, exit_with_one_line, new_app

_THREADS = 32


@dataclass(frozen=True)
class Verified:
    """The number of checked generations, files and bytes, and the problems found."""

    generations: int
    files: int
    bytes: int
    problems: Problems


def verify(store: Store, *, deep: bool = False) -> Verified:
    """Check an index against its manifests and collect all problems; `deep`: read every byte.

    Raises:
        IndexStateError: there is no index.
    """
    problems = Problems()
    generations = read_committed(store, problems)
    files = {file for generation in generations.values() for file in generation.files}
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(lambda file: _check_size(store, file, problems), files):
            pass
    for number in generations:
        _check_deletions(number, generations, problems)
    if deep:
        check_deep(store, generations, problems)
    size = sum(file.bytes for file in files)
    return Verified(len(generations), len(files), size, problems)


def _check_size(store: Store, file: FileRecord, problems: Problems) -> None:
    try:
        found = store.size(file.path)
    except FileNotFoundError:
        problems.add(file.path, "a file", "none")
    except StorageError as error:
        problems.add(file.path, "a file", one_line(error))
    else:
        if found != file.bytes:
            problems.add(file.path, f"{file.bytes:,} bytes", f"{found:,}")


def _check_deletions(
    number: int, generations: Mapping[int, Generation], problems: Problems
) -> None:
    """Check that deletions hide only rows of this generation or of its ancestors."""
    chain, masked = chain_of(number, generations), generations[number].deletions
    if chain is None or masked is None or any(generation.parts is None for generation in chain):
        return
    rows = {file.path: file.rows for generation in chain for file in generation.parts or []}
    known = pc.index_in(masked["part"], pa.array(rows.keys(), pa.string()))
    stops = pc.add(masked["first_row"], masked["n_rows"])
    inside = pc.less_equal(stops, pa.array(rows.values(), pa.int64()).take(known))
    good = pc.and_(pc.and_(pc.greater_equal(masked["first_row"], 0), inside), pc.is_valid(known))
    path = generations[number].manifest.tables.deletions.path
    for row in masked.filter(pc.invert(pc.fill_null(good, False))).to_pylist():
        part, first, stop = row["part"], row["first_row"], row["first_row"] + row["n_rows"]
        if part in rows:
            problems.add(path, f"rows below {rows[part]:,} of {part}", f"[{first:,}, {stop:,})")
        else:
            problems.add(path, "parts of the generation or its ancestors", part)


app = new_app()

_EPILOG = (
    "Exit codes: 0 the index matches its manifests; 1 it does not, each problem is a line on "
    "stdout; 2 there is no index."
)


@app.command(epilog=_EPILOG)
def main(
    uri: IndexUri,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep",
            help="Read every byte: check checksums, ids, ledgers against rows, counts, vectors.",
        ),
    ] = False,
) -> None:
    """Check every generation of an index against its files, without changing anything."""
    with exit_with_one_line():
        found = verify(open_store(uri), deep=deep)
        for line in found.problems.lines():
            typer.echo(line)
        held = f"generations: {found.generations:,}, files: {found.files:,} ({found.bytes:,} bytes)"
        if found.problems.count:
            typer.echo(f"problems: {found.problems.count:,}; {held}")
        else:
            typer.echo(f"ok; {held}{', every byte read' if deep else '; --deep reads every byte'}")
    if found.problems.count:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
