"""Which committed generations an index may forget: old ones that nobody needs to go back to.

Never the live one; never an ancestor of one that stays; never the newest, as its number must not be
given again. Nothing at all, unless someone asks for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from pipelines.records import Manifest


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What stays beside the live generation; None: not a reason to stay."""

    generations: int | None = None
    """The newest so many, and the last so many that were published."""
    days: float | None = None
    """Those that were committed, or live, so many days ago or less."""

    @property
    def forgets(self) -> bool:
        """Whether anything may go."""
        return self.generations is not None or self.days is not None


@dataclass(frozen=True)
class Published:
    """A publication: which generation, and when by the store's clock."""

    generation: int
    when: datetime


def expired(
    retention: Retention,
    manifests: Mapping[int, Manifest],
    committed: Mapping[int, datetime],
    publications: Mapping[int, Published],
    now: datetime,
    age: timedelta,
) -> list[int]:
    """Generations that go, the newest first: so that none is ever without its ancestors.

    `committed`: when each manifest was written; `publications`: by number; `age`: nothing goes that
    was committed, or live, more recently: a reader may still have it open.
    """
    if not retention.forgets or not manifests:
        return []
    order = [publications[number].generation for number in sorted(publications)]
    live = order[-1] if order else None
    newest = max(retention.generations or 1, 1)
    kept = set(sorted(manifests)[-newest:])
    # Re-indexing asks whether what it is about to do was published and taken back.
    kept |= {number for number in order if live is not None and number >= live}
    if retention.generations is not None:
        kept |= set(list(dict.fromkeys(reversed(order)))[:newest])
    grace = age if retention.days is None else max(age, timedelta(days=retention.days))
    ends = _ends(publications)
    until = {number: max(when, ends.get(number, when)) for number, when in committed.items()}
    kept |= {number for number in manifests if until[number] > now - grace}
    kept = _with_ancestors(kept, manifests)
    return sorted(manifests.keys() - kept, reverse=True)


def _ends(publications: Mapping[int, Published]) -> dict[int, datetime]:
    """When generations were live for the last time: when another one took over."""
    numbers = sorted(publications)
    return {
        publications[mine].generation: publications[after].when
        for mine, after in itertools.pairwise(numbers)
    }


def _with_ancestors(numbers: Iterable[int], manifests: Mapping[int, Manifest]) -> set[int]:
    found: set[int] = set()
    for number in numbers:
        ancestor: int | None = number
        while ancestor is not None and ancestor in manifests and ancestor not in found:
            found.add(ancestor)
            ancestor = manifests[ancestor].parent
    return found
