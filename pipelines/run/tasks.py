"""Decides which run an index needs now: a task to start or continue, or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from actors.encoded import SCORE
from actors.errors import ConfigError, GateError, IndexStateError
from pipelines.index.generations import (
    check_vectors,
    live_generation,
    publications,
    read_chain,
    read_manifest,
)
from pipelines.index.layout import manifest_path
from pipelines.index.reader import Index
from pipelines.index.records import Manifest, Plan, RunKind
from pipelines.plan.inventory import (
    for_now,
    inventory,
    plan_of,
    read_again,
    unchanged_units,
    units_now,
)
from pipelines.plan.mentions import newest_places
from pipelines.plan.plan import load_plan
from pipelines.plan.request import Request, differences
from pipelines.run.context import RunContext
from pipelines.source.units import Listing, Unit
from pipelines.store.store import Store
from pipelines.terminal.text import byte_count


@dataclass(frozen=True)
class Task:
    """A run to start or continue."""

    run_id: str
    parent: int | None
    """The generation that the run adds to."""
    pin: Callable[[], tuple[Sequence[Unit], str]]
    """Returns the units and the hash of the listing they come from."""
    kind: RunKind = "embed"
    confirms: bool = True
    """Whether a large run needs confirmation; a replay is part of a run already confirmed."""

    def pinned(self) -> Task:
        """Return the same task, with its units computed only once."""
        pins = self.pin()
        return replace(self, pin=lambda: pins)


def next_embed_task(context: RunContext, *, fresh: bool, replay: bool) -> Task | Manifest:
    """Return the next embedding task, or the live generation if there is nothing to do.

    Raises:
        IndexStateError: the live generation has another request, or there is none to replay.
        ConfigError: `fresh` and `replay` are both set.
    """
    store, request = context.store, context.request
    source, listing = context.source, context.listing

    def pin() -> tuple[Sequence[Unit], str]:
        return source.units(listing), listing.hash

    if fresh and replay:
        raise ConfigError("--fresh and --replay-rejects: expected one of them, got both.")
    if fresh:
        # Counting publications, not generations, gives a run that died just before its
        # publication the same id.
        after = max(publications(store), default=0)
        return Task(request.run_id(after=after, listing=listing.hash), None, pin)
    committed = _live(store, request)
    if replay:
        return _replay(store, request, committed)
    if committed is None:
        return Task(request.run_id(), None, pin)
    live, plan = committed
    if plan.listing != listing.hash:
        raise _differs(store, live.generation, [])
    return live


def _replay(
    store: Store, request: Request, committed: tuple[Manifest, Plan] | None
) -> Task | Manifest:
    if committed is None:
        raise IndexStateError(
            f"{store.uri}: expected a committed index whose rejects to replay, found none.",
            "Run without --replay-rejects; rejects that are not final are retried automatically.",
        )
    live, plan = committed
    again = for_now(Index(store, read_chain(store, live.generation)).rejects())
    if not again:
        return live

    def pin() -> tuple[Sequence[Unit], str]:
        return read_again(inventory(store, live), again), plan.listing

    return Task(request.run_id(replay=live.generation), live.generation, pin, "reindex", False)


def _live(store: Store, request: Request) -> tuple[Manifest, Plan] | None:
    """Return the live generation and its plan; refuse another request."""
    number = live_generation(store)
    if number is None:
        return None
    live = read_manifest(store, number)
    _check_kind(store, live, request)
    plan = load_plan(store, live.run_id)
    others = request.differences(plan.request) if plan else ["plan (it was removed)"]
    if plan is None or others:
        raise _differs(store, number, others)
    return live, plan


def _check_kind(store: Store, live: Manifest, request: Request) -> None:
    kinds = ("vectors of passages", "scores of pairs")
    made, held = (kinds[SCORE in outputs] for outputs in (request.parts["outputs"], live.outputs))
    if made != held:
        raise IndexStateError(
            f"{store.uri}: expected {made}, which this run makes, found {held} (generation "
            f"{live.generation}).",
            "Use another index.uri, or start a new generation without a parent by --fresh.",
        )


def _differs(store: Store, number: int, others: Sequence[str]) -> IndexStateError:
    """Return the error for a generation with other keys, or with other files if `others` is []."""
    up_to_date = "Run python -m pipelines.reindex to bring the index up to date; "
    if SCORE in read_manifest(store, number).outputs:
        up_to_date = ""  # pairs cannot be re-indexed
    named = f"{', '.join(others[:6])}{', ...' * (len(others) > 6)}"
    return IndexStateError(
        f"{store.uri}: expected an index of this configuration, found generation {number} with "
        f"another {named}."
        if others
        else f"{store.uri}: the files of the source have changed since generation {number}.",
        f"{up_to_date}--fresh starts a generation without a parent; or use another index.uri.",
    )


def next_reindex_task(context: RunContext) -> Task | Manifest:
    """Return the next re-indexing task, or the live generation if there is nothing to do.

    Raises:
        GateError: a generation with the source's present state was published and rolled back.
    """
    store, request = context.store, context.request
    source, listing = context.source, context.listing
    chain = read_chain(store, live_number(store))
    live, plan, index = chain[0], plan_of(store, chain[0]), Index(store, chain)
    before = inventory(store, live)
    rejects = index.rejects()
    kept = unchanged_units(listing, before)
    reads_alike = not _reading_differs(request, plan.request)
    # With a limit, the documents read from a file depend on the files before it.
    comparable = kept if reads_alike and request.parts["source"]["limit"] is None else []
    again = for_now(rejects) | _shadowed(index, rejects, before, kept)
    if plan.listing == listing.hash and reads_alike and not again:
        return live
    run_id = request.run_id(reindex=live.generation, listing=listing.hash)
    if number := _taken_back(store, live, listing):
        raise GateError(
            f"{store.uri}: generation {number} holds this state of the source, and was rolled "
            f"back: generation {live.generation} is live.",
            "Nothing is done until the source changes; to make that generation live again: "
            f"python -m pipelines.publish_generation {store.uri} {number}",
        )

    def pin() -> tuple[Sequence[Unit], str]:
        types = {field.name: field.type for field in index.schema}
        return units_now(source, listing, before if comparable else [], again, types), listing.hash

    return Task(run_id, live.generation, pin, "reindex")


def describe_reindex(context: RunContext) -> str:
    """Describe what `reindex` would do, without reading a document.

    Raises:
        EmbedError: `reindex` could not start.
    """
    store, listing = context.store, context.listing
    live = read_manifest(store, live_number(store))
    if context.request.index_fingerprint != live.index_fingerprint:
        return "everything would be embedded again: the configuration has changed"
    task = next_reindex_task(context)
    if not isinstance(task, Task):
        return f"nothing to do: generation {live.generation} matches its source"
    read = {piece.file for unit in task.pin()[0] if unit.wanted for piece in unit.pieces}
    before = {piece.file.path for unit in inventory(store, live) for piece in unit.pieces}
    gone = before - {file.path for file in listing.files}
    size = sum(max(file.size, 0) for file in read)
    return (
        f"{len(read):,} of {len(listing.files):,} files would be read ({byte_count(size)}), and "
        f"their documents compared with generation {live.generation}; {len(gone):,} files are gone"
    )


def live_number(store: Store) -> int:
    """Return the number of the live generation.

    Raises:
        IndexStateError: nothing is published, or the index holds scores.
    """
    number = live_generation(store)
    if number is None:
        raise IndexStateError(
            f"{store.uri}: expected a committed index to bring up to date, found none.",
            "Run python -m pipelines.embed_corpus first.",
        )
    check_vectors(read_manifest(store, number), store.uri)
    return number


def _taken_back(store: Store, live: Manifest, listing: Listing) -> int | None:
    """Return a newer generation with the source's present state that was rolled back, or None."""
    newer = {number for number in publications(store).values() if number > live.generation}
    for number in sorted(newer, reverse=True):
        if store.exists(manifest_path(number)):
            manifest = read_manifest(store, number)
            if manifest.compacts is None and plan_of(store, manifest).listing == listing.hash:
                return number
    return None


def _reading_differs(request: Request, before: dict[str, object]) -> bool:
    """Return whether changed settings would read other documents from the same files."""
    now, then = dict(request.parts["source"]), before["source"]
    assert isinstance(then, dict)
    return bool(differences(now | {"uri": ""}, then | {"uri": ""}))


def _shadowed(
    index: Index, rejects: pa.Table, before: Sequence[Unit], kept: Sequence[Unit]
) -> set[int]:
    """Return units with rejected duplicates whose id was held in a file that has since changed:
    such a duplicate may now be the only document with its id."""
    numbers = pa.array([unit.number for unit in kept], pa.int32())
    doubles = rejects.filter(
        pc.and_(pc.equal(rejects["code"], "duplicate_id"), pc.is_in(rejects["unit"], numbers))
    )
    if not doubles.num_rows:
        return set()
    still = {origin for unit in kept for origin in unit.origins}
    places = newest_places(index, doubles["doc_id"].unique().to_pylist())
    held = {doc_id for doc_id, place in places.items() if (place.run_id, place.unit) in still}
    rows = zip(doubles["doc_id"].to_pylist(), doubles["unit"].to_pylist(), strict=True)
    return {unit for doc_id, unit in rows if doc_id not in held}
