"""What a generation takes over from the one it adds to."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from pipelines.duplicates import LOST_SCHEMA
from pipelines.schemas import DELETIONS_SCHEMA, REJECTS_SCHEMA


@dataclass(frozen=True)
class Inheritance:
    """Decided at the commit, from what the run did and what its parent has."""

    documents: int
    """Of the parent and its ancestors, those that stay live."""
    rejects: pa.Table
    """REJECTS_SCHEMA: those of the parent that are still true, and documents of it that lose their
    id to one of this run."""
    masked: pa.Table
    """DELETIONS_SCHEMA: rows of the parent's documents that are live no more."""
    lost: pa.Table
    """LOST_SCHEMA: documents of this run that lose their id to one of the parent's."""
    deleted: int = 0
    """Documents of the parent that go."""
    replaced: int = 0
    """Documents of the parent that this run has anew."""


NOTHING = Inheritance(
    0, REJECTS_SCHEMA.empty_table(), DELETIONS_SCHEMA.empty_table(), LOST_SCHEMA.empty_table()
)
