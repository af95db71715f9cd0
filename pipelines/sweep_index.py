"""Remove from an index what dead runs left: never what a manifest refers to, nor what is young.

    python -m pipelines.sweep_index s3://vectors/wiki --days 7 --dry-run

The sweep holds the index's lease, so that no run writes meanwhile. Ages are those of the store's
own clock: "now" is when it wrote the sweep's lease.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated

import typer
from pydantic import ValidationError

from actors.errors import IndexStateError
from pipelines.cli import exit_with_one_line
from pipelines.committed import Generation, Problems, read_committed
from pipelines.lease import Lease, hold_lease
from pipelines.records import Done
from pipelines.storage import Store, open_store
from pipelines.stored_files import StoredFile

_HEX = "[0-9a-f]"
_RUN = f"(?P<run>{_HEX}{{16}})"
_SLICE = r"\d{6,}-\d{10,}"
_FOLDERS = "data|documents|rejects|unchanged"
_RULES = {
    "temporary": rf"(?:.*/)?\.[^/]+\.{_HEX}{{12}}\.tmp",
    "done": rf"runs/{_RUN}/done/{_SLICE}(?:\.unreadable)?\.json",
    "plan": rf"runs/{_RUN}/(?:plan\.json|units\.parquet)",
    "words": rf"runs/{_RUN}/(?:words|readings|digests)/.+",
    "rows": rf"(?:{_FOLDERS})/{_RUN}/(?:{_SLICE}|commit)-{_HEX}{{12}}\.parquet",
    "table": rf"generations/(?P<number>\d{{6,}})/(?:parts|documents|rejects|deletions|unchanged)"
    rf"-{_HEX}{{12}}"
    r"\.parquet",
    "manifest": r"generations/\d{6,}/manifest\.json",
    "report": r"generations/(?P<number>\d{6,})/(?:config\.yaml|report\.json|report\.html)",
    "publication": r"publications/\d{6,}\.json",
    "lease": r"leases/(?P<epoch>\d{6,})\.(?:json|beat|released)",
}
"""Every file an index has; see layout.py."""
_PATTERNS = {kind: re.compile(rule) for kind, rule in _RULES.items()}
_OF_RUN = re.compile(rf"(?:runs|{_FOLDERS})/{_RUN}/.+")

# In the order of their removal. Done records before all else of a run: a crash in between must
# never leave one whose part is gone. The plan before the units: it is made anew from them.
_ORDER = (
    "done records of dead runs",
    "plans of dead runs",
    "files of dead runs",
    "files of slices and commits that lost a race",
    "tables of commits that lost a race",
    "temporary files",
    "old leases",
)
_BATCH = 1000


@dataclass(frozen=True)
class _Known:
    """A file and what its path says of it."""

    file: StoredFile
    kind: str
    place: Mapping[str, str | None]
    """`run`, `number` or `epoch`."""

    @property
    def path(self) -> str:
        return self.file.path


@dataclass
class Garbage:
    """What can go, and what was found beside it."""

    by_kind: dict[str, list[StoredFile]] = field(default_factory=lambda: {k: [] for k in _ORDER})
    """In the order of removal."""
    slices: dict[str, int] = field(default_factory=dict)
    """Dead run -> slices that will have to be done again."""
    unknown: list[str] = field(default_factory=list)
    """Files that no rule of the layout covers: they stay."""


def sweep(store: Store, *, days: float = 1, dry_run: bool = False) -> Garbage:
    """Remove the garbage that is older than `days`; returns what went, or would with `dry_run`.

    Raises:
        IndexStateError: there is no index, or one so damaged that garbage cannot be told.
        LeaseHeldError: a run is writing it.
    """
    if all(found is None or found.kind == "temporary" for found in map(_known_of, store.find())):
        raise IndexStateError(f"{store.uri}: expected an index, found none.", "Correct the path.")
    with hold_lease(store, "sweep") as lease:
        garbage = find_garbage(store, lease.epoch, timedelta(days=days))
        if not dry_run:
            _remove(lease, garbage)
    return garbage


def find_garbage(store: Store, epoch: int, age: timedelta) -> Garbage:
    """What a holder of the lease may remove.

    Raises:
        IndexStateError: a manifest, table, publication or done record cannot be read.
    """
    files = store.find()
    known = [found for file in files if (found := _known_of(file))]
    now = next(f.file.modified for f in known if f.path == f"leases/{epoch:06d}.json")
    generations = _read_committed(store, known)
    referred = {file.path for g in generations.values() for file in g.files}
    referred |= {table.path for g in generations.values() for table in g.manifest.tables.records()}
    old = [f for f in known if f.file.modified <= now - age and f.path not in referred]
    paths = {f.path for f in known}
    garbage = Garbage(unknown=[file.path for file in files if file.path not in paths])
    alive = {generation.manifest.run_id for generation in generations.values()}
    for file in files:
        if file.modified > now - age or file.path in referred:
            alive |= {match["run"] for match in [_OF_RUN.fullmatch(file.path)] if match}
    _find_runs(store, known, old, alive, garbage)
    for f in old:
        if f.kind == "temporary":
            garbage.by_kind["temporary files"].append(f.file)
        elif f.kind == "lease" and int(f.place["epoch"] or 0) < epoch:
            garbage.by_kind["old leases"].append(f.file)
        elif f.kind == "table" or (
            f.kind == "report" and int(f.place["number"] or 0) not in generations
        ):
            garbage.by_kind["tables of commits that lost a race"].append(f.file)
    return garbage


def _known_of(file: StoredFile) -> _Known | None:
    for kind, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(file.path):
            return _Known(file, kind, match.groupdict())
    return None


def _read_committed(store: Store, known: Iterable[_Known]) -> dict[int, Generation]:
    if not any(f.kind in ("manifest", "publication") for f in known):
        return {}  # of an interrupted run only
    problems = Problems()
    generations = read_committed(store, problems)
    if problems.count:
        raise IndexStateError(
            f"{store.uri}: expected manifests and tables that say what is in use, found "
            f"{problems.count} problems; the first: {problems.lines()[0]}.",
            "Nothing was removed. python -m pipelines.verify_index lists them all.",
        )
    return generations


def _find_runs(
    store: Store,
    known: Iterable[_Known],
    old: Iterable[_Known],
    alive: set[str],
    garbage: Garbage,
) -> None:
    """Dead runs, and what slices that lost a race left of those that are alive."""
    of_run = _by_run(known)
    for run, files in _by_run(old).items():
        if run not in alive:
            kinds = {"done": "done records", "plan": "plans"}
            for f in files:  # sorted by path: plan.json, then units.parquet
                garbage.by_kind[f"{kinds.get(f.kind, 'files')} of dead runs"].append(f.file)
            garbage.slices[run] = sum(f.kind == "done" for f in files)
        elif rows := [f for f in files if f.kind == "rows"]:
            used = _used_by_slices(store, [f.path for f in of_run[run] if f.kind == "done"])
            kind = "files of slices and commits that lost a race"
            garbage.by_kind[kind] += [f.file for f in rows if f.path not in used]


def _by_run(files: Iterable[_Known]) -> dict[str, list[_Known]]:
    found: dict[str, list[_Known]] = defaultdict(list)
    for f in files:
        if run := f.place.get("run"):
            found[run].append(f)
    return found


def _used_by_slices(store: Store, paths: list[str]) -> set[str]:
    used: set[str] = set()
    for path, content in zip(paths, store.read_many(paths), strict=True):
        try:
            done = Done.model_validate_json(content)
        except ValidationError as error:
            raise IndexStateError(
                f"{store.url(path)}: expected a done record, found something else "
                f"({error.errors()[0]['msg']}).",
                "Nothing was removed. Delete the file if its slice shall be done again.",
            ) from error
        used |= {file.path for file in done.files}
    return used


def _remove(lease: Lease, garbage: Garbage) -> None:
    for files in garbage.by_kind.values():
        for first in range(0, len(files), _BATCH):
            lease.check()  # another may have taken it over while this process stood still
            lease.store.delete_many(file.path for file in files[first : first + _BATCH])


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_EPILOG = "Exit codes: 0 done; 1 it failed; 2 there is no index, or a run is writing it."
_SHOWN = 100


@app.command(epilog=_EPILOG)
def main(
    uri: Annotated[str, typer.Argument(help="The index: a local path or s3://...")],
    days: Annotated[
        int, typer.Option(help="Leave everything younger than N days.", metavar="N", min=1)
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would go. Takes the lease too.")
    ] = False,
) -> None:
    """Remove what dead runs left in an index. A run that is to go on later is dead, too."""
    with exit_with_one_line():
        garbage = sweep(open_store(uri), days=days, dry_run=dry_run)
        removed = "would remove" if dry_run else "removed"
        for kind, files in garbage.by_kind.items():
            if files:
                typer.echo(f"{removed} {_held(files)}: {kind}")
            for file in files if dry_run else []:
                typer.echo(f"  {file.path}")
        for run, slices in garbage.slices.items():
            typer.echo(f"run {run} never committed: {slices:,} slices to be done again")
        for path in garbage.unknown[:_SHOWN]:
            typer.echo(f"left, as nothing of an index is called so: {path}")
        if len(garbage.unknown) > _SHOWN:
            typer.echo(f"... and {len(garbage.unknown) - _SHOWN:,} more")
        typer.echo(f"{removed} {_held([f for fs in garbage.by_kind.values() for f in fs])} in all")


def _held(files: list[StoredFile]) -> str:
    return f"{len(files):,} files, {sum(file.size for file in files):,} bytes"


if __name__ == "__main__":
    app()
