"""Finds garbage in an index: files of dead runs, and generations that retention gives up.

Young files and files that a remaining manifest refers to are no garbage. Nothing is removed here.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pydantic import ValidationError

from actors.errors import IndexStateError
from pipelines.index.generations import publications
from pipelines.index.layout import lease_path, recognise, run_of
from pipelines.index.records import Done, Manifest
from pipelines.maintain.audit import Generation, Problems, read_committed
from pipelines.store.files import StoredFile
from pipelines.store.store import Store


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Rules that keep generations besides the live one; None switches a rule off."""

    generations: int | None = None
    """Keep this many newest generations, and this many last published ones."""
    days: float | None = None
    """Keep generations that were committed or live within this many days."""

    @property
    def forgets(self) -> bool:
        """Whether any generation may be removed."""
        return self.generations is not None or self.days is not None


@dataclass(frozen=True)
class Publication:
    """The published generation and the time by the store's clock."""

    generation: int
    when: datetime


def expired(
    retention: Retention,
    manifests: Mapping[int, Manifest],
    committed: Mapping[int, datetime],
    publications: Mapping[int, Publication],
    now: datetime,
    age: timedelta,
) -> list[int]:
    """Return generations to remove, the newest first, so that none ever lacks its ancestors.

    `committed`: the time of each manifest; `publications`: by number; `age`: generations committed
    or live more recently than this are kept, because a reader may have them open.
    """
    if not retention.forgets:
        return []
    in_order = [publications[number] for number in sorted(publications)]
    order = [publication.generation for publication in in_order]
    newest = max(retention.generations or 1, 1)
    kept = set(sorted(manifests)[-newest:])
    # Re-indexing checks whether its result was already published and rolled back.
    kept |= {number for number in order if number >= order[-1]}
    if retention.generations is not None:
        kept |= set(list(dict.fromkeys(reversed(order)))[:newest])
    grace = age if retention.days is None else max(age, timedelta(days=retention.days))
    # A generation was live until the next publication.
    ends = {mine.generation: after.when for mine, after in itertools.pairwise(in_order)}
    until = {number: max(when, ends.get(number, when)) for number, when in committed.items()}
    kept |= {number for number in manifests if until[number] > now - grace}
    going = []
    for number in sorted(manifests, reverse=True):  # a parent has the lower number
        if number not in kept:
            going.append(number)
        elif parent := manifests[number].parent:
            kept.add(parent)
    return going


KEEP_ALL = Retention()

_TABLES = "tables that no manifest names"
PUBLICATIONS = "publications of removed generations"
MANIFESTS = "manifests of removed generations"

# Kinds of garbage in the order of removal: a publication before the manifest it names, a manifest
# before the files it refers to. Done records come before the other files of a run, because a crash
# must not leave a done record without its part. The plan comes before the units it is made from.
_ORDER = (
    PUBLICATIONS,
    MANIFESTS,
    "done records of dead runs",
    "plans of dead runs",
    "files of dead runs",
    "files of slices and commits that lost a race",
    _TABLES,
    "temporary files",
    "old leases",
)


@dataclass(frozen=True)
class _Known:
    """A file with its kind and the fields of its path."""

    file: StoredFile
    kind: str
    place: Mapping[str, str]
    """Fields of the path, such as `run`, `number` or `epoch`."""

    @property
    def path(self) -> str:
        return self.file.path


@dataclass
class Garbage:
    """Files and generations that can be removed, and files that are unknown."""

    by_kind: dict[str, list[StoredFile]] = field(default_factory=lambda: {k: [] for k in _ORDER})
    """Files by kind, in the order of removal."""
    slices: dict[str, int] = field(default_factory=dict)
    """Dead run -> number of slices that it would have to encode again."""
    generations: list[int] = field(default_factory=list)
    """Committed generations to remove, the newest first."""
    unknown: list[str] = field(default_factory=list)
    """Files whose path no template matches; they are kept."""


def find_garbage(
    store: Store, epoch: int, age: timedelta, retention: Retention = KEEP_ALL
) -> Garbage:
    """Return the files that the holder of the lease `epoch` may remove.

    Raises:
        IndexStateError: a manifest, table, publication or done record cannot be read.
    """
    files = store.find()
    places = ((file, recognise(file.path)) for file in files)
    known = [_Known(file, *place) for file, place in places if place]
    now = next(f.file.modified for f in known if f.path == lease_path(epoch, "json"))
    generations = _read_committed(store, known)
    paths = {f.path for f in known}
    garbage = Garbage(unknown=[file.path for file in files if file.path not in paths])
    runs = {generation.manifest.run_id for generation in generations.values()}
    _find_expired(store, known, generations, retention, now, age, garbage)
    for number in garbage.generations:
        del generations[number]
    referred = {file.path for g in generations.values() for file in g.files}
    referred |= {table.path for g in generations.values() for table in g.manifest.tables.records()}
    old = [f for f in known if f.file.modified <= now - age and f.path not in referred]
    # Kept parts of a compacted generation are excluded above, though they belong to another run.
    alive = {generation.manifest.run_id for generation in generations.values()}
    alive |= {run for file in files if file.modified > now - age and (run := run_of(file.path))}
    _find_runs(store, known, old, alive, garbage)
    for run in runs & garbage.slices.keys():
        del garbage.slices[run]  # its generation is removed: the run will not be repeated
    for f in old:
        if f.kind == "temporary":
            garbage.by_kind["temporary files"].append(f.file)
        elif f.kind == "lease" and int(f.place["epoch"]) < epoch:
            garbage.by_kind["old leases"].append(f.file)
        elif f.kind == "table" or (
            f.kind == "report" and int(f.place["number"]) not in generations
        ):
            garbage.by_kind[_TABLES].append(f.file)
    return garbage


def _find_expired(
    store: Store,
    known: Iterable[_Known],
    generations: Mapping[int, Generation],
    retention: Retention,
    now: datetime,
    age: timedelta,
    garbage: Garbage,
) -> None:
    """Add expired generations, their manifests and the publications that name them."""
    if not retention.forgets:
        return
    of_kind = {
        kind: {int(f.place["number"]): f.file for f in known if f.kind == kind}
        for kind in ("manifest", "publication")
    }
    manifests, files = of_kind["manifest"], of_kind["publication"]
    published = {
        number: Publication(generation, files[number].modified)
        for number, generation in sorted(publications(store).items())
        if number in files
    }
    garbage.generations = going = expired(
        retention,
        {number: generation.manifest for number, generation in generations.items()},
        {number: file.modified for number, file in manifests.items()},
        published,
        now,
        age,
    )
    garbage.by_kind[MANIFESTS] = [manifests[number] for number in going]
    garbage.by_kind[PUBLICATIONS] = [
        files[n] for n, p in published.items() if p.generation in going
    ]


def _read_committed(store: Store, known: Iterable[_Known]) -> dict[int, Generation]:
    if not any(f.kind in ("manifest", "publication") for f in known):
        return {}  # the index holds only interrupted runs
    problems = Problems()
    generations = read_committed(store, problems)
    expected = f"{store.uri}: expected manifests and tables that say what is in use"
    problems.refuse_any(expected, "removed")
    return generations


def _find_runs(
    store: Store,
    known: Iterable[_Known],
    old: Iterable[_Known],
    alive: set[str],
    garbage: Garbage,
) -> None:
    """Add files of dead runs, and in live runs the files of slices that lost a race."""
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
                f"{store.url(path)}: expected a done record, found an invalid file "
                f"({error.errors()[0]['msg']}).",
                "Nothing was removed. Delete the file to have its slice encoded again.",
            ) from error
        used |= {file.path for file in done.files}
    return used
