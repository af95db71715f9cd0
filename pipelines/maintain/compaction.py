"""Decides whether compaction is worth its cost, and which parts it must rewrite.

Large parts without dead rows are kept, so the cost grows with the waste. Nothing is written here.
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
    """Limits beyond which compaction is worth its cost; one of them is enough."""

    min_dead: float = 0.2
    """Share of rows that are dead, that is, skipped by readers."""
    small_bytes: int = 32 << 20
    """Size below which a part is small."""
    small_parts: int = 64
    """Number of files that merging the small parts would save."""
    generations: int = 30
    """Number of generations that a reader may have to read."""


@dataclass(frozen=True)
class OldPart(Part):
    """A part of the live view, with its file and the generation that lists it."""

    file: FileRecord
    generation: int

    @property
    def dead_rows(self) -> int:
        """The number of deleted rows."""
        return self.rows - self.live_rows

    @property
    def live_bytes(self) -> int:
        """The approximate size of its live rows."""
        return self.file.bytes * self.live_rows // max(self.rows, 1)


@dataclass(frozen=True)
class LiveView:
    """The live generation, its ancestors, and their parts."""

    chain: Sequence[Generation]
    """Generations, the newest first."""
    parts: Sequence[OldPart]
    """Parts, the oldest first."""

    @staticmethod
    def read(store: Store) -> LiveView:
        """Read the published live view.

        Raises:
            IndexStateError: nothing is published, or a table is damaged.
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
        """The manifest of the live generation."""
        return self.chain[0].manifest

    @property
    def rows(self) -> int:
        """The number of rows of all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def dead_rows(self) -> int:
        """The number of rows that readers skip."""
        return sum(part.dead_rows for part in self.parts)


@dataclass(frozen=True)
class Outputs:
    """The parts of a compacted generation: kept and rewritten ones."""

    kept: Sequence[OldPart]
    rewritten: Sequence[Sequence[OldPart]]
    """Groups of old parts; the live rows of each group become one new part."""
    small: int
    """Number of small parts."""
    fewer: int
    """Number of files that merging the small parts saves."""

    @staticmethod
    def of(view: LiveView, small_bytes: int) -> Outputs:
        """Rewrite parts with dead rows, merge small parts, keep all others."""
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
            # Keep or make one part without rows, because it stores the schema.
            if view.parts[0].rows:
                groups.append([view.parts[0]])
            else:
                kept.append(view.parts[0])
        alone = [group[0] for group in groups if len(group) == 1 and not group[0].dead_rows]
        rewritten = [group for group in groups if len(group) > 1 or group[0].dead_rows]
        return Outputs(kept + alone, rewritten, small, merged)

    def changes(self, view: LiveView) -> bool:
        """Return whether compaction would change anything."""
        return bool(self.rewritten) or len(view.chain) > 1 or len(self.kept) < len(view.parts)


def reasons(view: LiveView, outputs: Outputs, limits: Limits) -> list[str]:
    """Return the reasons for compaction, [] if it is not worth its cost."""
    dead, chain = share_of_dead(view), len(view.chain)
    found = []
    if dead and dead >= limits.min_dead:
        found.append(f"{dead:.1%} of {view.rows:,} rows are dead")
    if outputs.fewer >= limits.small_parts:
        found.append(f"{outputs.small:,} parts are small")
    if chain > limits.generations:
        found.append(f"a reader has to read {chain} generations")
    return found


def in_numbers(view: LiveView, outputs: Outputs, limits: Limits) -> str:
    """Describe the live view and the limits in one line."""
    return (
        f"{share_of_dead(view):.1%} of {view.rows:,} rows are dead (limit {limits.min_dead:.1%}), "
        f"{outputs.small:,} of {len(view.parts):,} parts are below {limits.small_bytes / 2**20:g} "
        f"MiB; merging saves {outputs.fewer:,} files (limit {limits.small_parts:,}), "
        f"{len(view.chain)} generations (limit {limits.generations})"
    )


def share_of_dead(view: LiveView) -> float:
    """Return the share of rows that are dead."""
    return view.dead_rows / max(view.rows, 1)
