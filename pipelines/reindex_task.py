"""What re-indexing has to do: a run that adds to the live generation, or nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import GateError, IndexStateError
from pipelines.estimate_text import byte_count
from pipelines.generations import (
    live_generation,
    publications,
    read_chain,
    read_manifest,
)
from pipelines.index import Index
from pipelines.inventory import for_now, inventory, plan_of, unchanged_units, units_now
from pipelines.layout import manifest_path
from pipelines.listing import Listing
from pipelines.records import Manifest
from pipelines.request import Request, differences
from pipelines.source import Source, Unit
from pipelines.space import check_vectors
from pipelines.storage import Store
from pipelines.supersede import newest_places
from pipelines.tasks import Task


def next_task_of(
    store: Store, request: Request, source: Source, listing: Listing
) -> Task | Manifest:
    """The task, or the live generation where there is nothing to do.

    Raises:
        GateError: what there is to do has been done, published, and taken back.
    """
    chain = read_chain(store, live_number(store))
    live, plan, index = chain[0], plan_of(store, chain[0]), Index(store, chain)
    before = inventory(store, live)
    rejects = index.rejects()
    kept = unchanged_units(listing, before)
    reads_alike = not _reading_differs(request, plan.request)
    # How many documents a limit leaves of a file depends on the files before it.
    comparable = kept if reads_alike and request.parts["source"]["limit"] is None else []
    again = for_now(rejects) | _shadowed(index, rejects, before, kept)
    if plan.listing == listing.hash and reads_alike and not again:
        return live
    run_id = request.run_id(reindex=live.generation, listing=listing.hash)
    if number := _taken_back(store, live, listing):
        raise GateError(
            f"{store.uri}: generation {number} holds this state of the source, and was taken back: "
            f"generation {live.generation} is live.",
            "Nothing is done until the source changes; to make it live again: "
            f"python -m pipelines.publish_generation {store.uri} {number}",
        )

    def pin() -> tuple[Sequence[Unit], str]:
        types = {field.name: field.type for field in index.schema}
        return units_now(source, listing, before if comparable else [], again, types), listing.hash

    return Task(run_id, live.generation, pin, "reindex")


def outlook(store: Store, request: Request, source: Source, listing: Listing) -> str:
    """What `reindex` would do, as far as it shows without reading a document; for people.

    Raises:
        EmbedError: what would also keep it from starting.
    """
    live = read_manifest(store, live_number(store))
    if request.index_fingerprint != live.index_fingerprint:
        return "everything would be embedded again: the configuration has become another one"
    task = next_task_of(store, request, source, listing)
    if not isinstance(task, Task):
        return f"nothing to do: generation {live.generation} is what its source is"
    read = {piece.file for unit in task.pin()[0] if unit.wanted for piece in unit.pieces}
    before = {piece.file.path for unit in inventory(store, live) for piece in unit.pieces}
    gone = before - {file.path for file in listing.files}
    size = sum(max(file.size, 0) for file in read)
    return (
        f"{len(read):,} of {len(listing.files):,} files would be read ({byte_count(size)}), and "
        f"their documents compared with generation {live.generation}; {len(gone):,} files are gone"
    )


def live_number(store: Store) -> int:
    """The live generation.

    Raises:
        IndexStateError: there is none, or one of scores.
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
    """A newer generation of the source as it is now, that was live once and is no more."""
    newer = {number for number in publications(store).values() if number > live.generation}
    for number in sorted(newer, reverse=True):
        if store.exists(manifest_path(number)):
            manifest = read_manifest(store, number)
            if manifest.compacts is None and plan_of(store, manifest).listing == listing.hash:
                return number
    return None


def _reading_differs(request: Request, before: dict[str, object]) -> bool:
    """Whether the same files would give other documents than they gave."""
    now, then = dict(request.parts["source"]), before["source"]
    assert isinstance(then, dict)
    return bool(differences(now | {"uri": ""}, then | {"uri": ""}))


def _shadowed(
    index: Index, rejects: pa.Table, before: Sequence[Unit], kept: Sequence[Unit]
) -> set[int]:
    """Units with documents whose id another one had, in a file that is not as it was any more: now
    they may be the only ones.
    """
    numbers = pa.array([unit.number for unit in kept], pa.int32())
    doubles = rejects.filter(
        pc.and_(pc.equal(rejects["code"], "duplicate_id"), pc.is_in(rejects["unit"], numbers))
    )
    if not doubles.num_rows:
        return set()
    still = {origin for unit in kept for origin in unit.origins}
    places = newest_places(index, doubles["doc_id"].unique().to_pylist())
    held = {p["doc_id"] for p in places if (p["run_id"], p["unit"]) in still}
    rows = zip(doubles["doc_id"].to_pylist(), doubles["unit"].to_pylist(), strict=True)
    return {unit for doc_id, unit in rows if doc_id not in held}
