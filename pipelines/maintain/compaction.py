"""What the live view of an index wastes, and which parts would have to be written anew.

Parts without dead rows stay as they are, if they are large enough; so the cost follows the waste.
Nothing here writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.index.generations import read_chain, require_live
from pipelines.index.parts import Part, rows_by_part
from pipelines.index.records import FileRecord, Manifest
from pipelines.maintain.audit import Generation, Problems, read_tables
from pipelines.store.store import Store

TARGET_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When compaction is worth its cost: reaching any one of these is enough."""

    min_dead: float = 0.2
    """Share of the rows that readers skip."""
    small_bytes: int = 32 << 20
    """A part below this is small."""
    small_parts: int = 64
    """The number of files that merging the small parts would save."""
    generations: int = 30
    """More generations than this in the chain that a reader goes through."""


@dataclass(frozen=True)
class OldPart(Part):
    """A part of the live view."""

    file: FileRecord
    generation: int

    @property
    def dead_rows(self) -> int:
        """How many rows of it are masked."""
        return self.rows - self.live_rows

    @property
    def live_bytes(self) -> int:
        """About how many bytes its live rows take."""
        return self.file.bytes * self.live_rows // max(self.rows, 1)


@dataclass(frozen=True)
class LiveView:
    """The live generation with its ancestors, and their parts."""

    chain: Sequence[Generation]
    """The newest first."""
    parts: Sequence[OldPart]
    """The oldest first."""

    @staticmethod
    def read(store: Store) -> LiveView:
        """The live view as it is published now.

        Raises:
            IndexStateError: nothing is published, or tables are damaged.
        """
        number, problems = require_live(store), Problems()
        chain = [read_tables(store, m, problems) for m in read_chain(store, number)]
        expected = f"{store.uri}: expected tables that say what generation {number} consists of"
        problems.refuse_any(expected, "changed")
        masked = rows_by_part(g.deletions for g in chain if g.deletions is not None)
        parts = [
            OldPart(file.path, file.rows, masked.get(file.path, ()), file, g.number)
            for g in reversed(chain)
            for file in g.parts or []
        ]
        return LiveView(chain, parts)

    @property
    def manifest(self) -> Manifest:
        """Of the live generation."""
        return self.chain[0].manifest

    @property
    def rows(self) -> int:
        """Of all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def dead_rows(self) -> int:
        """Those that readers skip."""
        return sum(part.dead_rows for part in self.parts)


@dataclass(frozen=True)
class Outputs:
    """What becomes of the parts of a live view."""

    kept: Sequence[OldPart]
    rewritten: Sequence[Sequence[OldPart]]
    """Old parts whose live rows go into one new part."""
    small: int
    """Parts that are small."""
    fewer: int
    """How many files merging the small parts saves."""

    @staticmethod
    def of(view: LiveView, small_bytes: int) -> Outputs:
        """Parts with dead rows are written anew, small ones are merged, the others stay."""
        kept: list[OldPart] = []
        groups: list[list[OldPart]] = []
        size = small = merged = 0
        for part in view.parts:
            if not part.live_rows:
                continue
            is_small = part.file.bytes < small_bytes
            small += is_small
            if not is_small and not part.dead_rows:
                kept.append(part)
                continue
            if not groups or size + part.live_bytes > TARGET_BYTES:
                groups.append([])
                size = 0
            elif is_small:
                merged += 1
            groups[-1].append(part)
            size += part.live_bytes
        if view.parts and not kept and not groups:
            # One without rows stays, or is made: it tells which columns there are.
            if view.parts[0].rows:
                groups.append([view.parts[0]])
            else:
                kept.append(view.parts[0])
        alone = [group[0] for group in groups if len(group) == 1 and not group[0].dead_rows]
        rewritten = [group for group in groups if len(group) > 1 or group[0].dead_rows]
        return Outputs(kept + alone, rewritten, small, merged)

    def changes(self, view: LiveView) -> bool:
        """Whether the compacted generation would be another one than what there is."""
        return bool(self.rewritten) or len(view.chain) > 1 or len(self.kept) < len(view.parts)


def reasons(view: LiveView, outputs: Outputs, limits: Limits) -> list[str]:
    """Why compaction is worth it; nothing where it is not."""
    dead, chain = share_of_dead(view), len(view.chain)
    found = []
    if dead and dead >= limits.min_dead:
        found.append(f"{dead:.1%} of {view.rows:,} rows are dead")
    if outputs.fewer >= limits.small_parts:
        found.append(f"{outputs.small:,} parts are small")
    if chain > limits.generations:
        found.append(f"a reader goes through {chain} generations")
    return found


def in_numbers(view: LiveView, outputs: Outputs, limits: Limits) -> str:
    """The live view beside the limits, for a line."""
    return (
        f"{share_of_dead(view):.1%} of {view.rows:,} rows are dead (limit {limits.min_dead:.1%}), "
        f"{outputs.small:,} of {len(view.parts):,} parts are below {limits.small_bytes / 2**20:g} "
        f"MiB and would be {outputs.fewer:,} files fewer (limit {limits.small_parts:,}), "
        f"{len(view.chain)} generations (limit {limits.generations})"
    )


def share_of_dead(view: LiveView) -> float:
    """Of the rows."""
    return view.dead_rows / max(view.rows, 1)
