"""What there is to do on an index as it is now: a run to start, one to go on with, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from actors.encoded import SCORE
from actors.errors import ConfigError, IndexStateError
from pipelines.generations import live_generation, publications, read_chain, read_manifest
from pipelines.index import Index
from pipelines.inventory import for_now, inventory, read_again
from pipelines.listing import Listing
from pipelines.plan import load_plan
from pipelines.records import Manifest, Plan, RunKind
from pipelines.request import Request
from pipelines.source import Source, Unit
from pipelines.storage import Store


@dataclass(frozen=True)
class Task:
    """A run to start, or to go on with."""

    run_id: str
    parent: int | None
    """The generation it adds to."""
    pin: Callable[[], tuple[Sequence[Unit], str]]
    """Its units, and the hash of the listing they come from."""
    kind: RunKind = "embed"

    def pinned(self) -> Task:
        """The same task, its files looked at once."""
        pins = self.pin()
        return replace(self, pin=lambda: pins)


def next_task_of(
    store: Store,
    request: Request,
    source: Source,
    listing: Listing,
    *,
    fresh: bool,
    replay: bool,
) -> Task | Manifest:
    """The task, or the live generation when there is nothing to do.

    Raises:
        IndexStateError: something else is committed, naming what differs; nothing to replay on.
        ConfigError: `fresh` and `replay` at once.
    """

    def pin() -> tuple[Sequence[Unit], str]:
        return source.units(listing), listing.hash

    if fresh and replay:
        raise ConfigError("--fresh and --replay-rejects: expected one of them, got both.")
    if fresh:
        # Publications are counted, not generations: a run that died just before its own is the
        # same one.
        after = max(publications(store), default=0)
        return Task(request.run_id(after=after, listing=listing.hash), None, pin)
    live, plan = _live(store, request)
    if replay:
        return _replay(store, request, live, plan)
    if live is None or plan is None:
        return Task(request.run_id(), None, pin)
    if plan.listing != listing.hash:
        raise _differs(store, live.generation, ["the source's files"])
    return live


def _replay(
    store: Store, request: Request, live: Manifest | None, plan: Plan | None
) -> Task | Manifest:
    if live is None or plan is None:
        raise IndexStateError(
            f"{store.uri}: expected a committed index whose rejects to replay, found none.",
            "Run without --replay-rejects; what was rejected for now is tried again by itself.",
        )
    again = for_now(Index(store, read_chain(store, live.generation)).rejects())
    if not again:
        return live

    def pin() -> tuple[Sequence[Unit], str]:
        return read_again(inventory(store, live), again), plan.listing

    return Task(request.run_id(replay=live.generation), live.generation, pin, "reindex")


def _live(store: Store, request: Request) -> tuple[Manifest | None, Plan | None]:
    """The live generation and its plan, both of this request."""
    number = live_generation(store)
    if number is None:
        return None, None
    live = read_manifest(store, number)
    _check_kind(store, live, request)
    plan = load_plan(store, live.run_id)
    differences = request.differences(plan.request) if plan else ["its plan is gone"]
    if differences:
        raise _differs(store, number, differences)
    return live, plan


def _check_kind(store: Store, live: Manifest, request: Request) -> None:
    kinds = ("vectors of passages", "scores of pairs")
    made, held = (kinds[SCORE in outputs] for outputs in (request.parts["outputs"], live.outputs))
    if made != held:
        raise IndexStateError(
            f"{store.uri}: expected {made}, which this run makes, found {held} (generation "
            f"{live.generation}).",
            "Use another index.uri; --fresh starts over beside it.",
        )


def _differs(store: Store, number: int, differences: Sequence[str]) -> IndexStateError:
    up_to_date = "python -m pipelines.reindex brings it up to its source; "
    if SCORE in read_manifest(store, number).outputs:
        up_to_date = ""  # pairs are not compared with what was scored before
    return IndexStateError(
        f"{store.uri} holds generation {number} of another request; what differs: "
        f"{', '.join(differences[:6])}{', ...' if len(differences) > 6 else ''}.",
        f"{up_to_date}--fresh starts over beside it; or use another index.uri.",
    )
