"""Defines the index format (paths, schemas, records, parts, generations) and reads it.

    index = open_index("out/quickstart")
    index.to_table(columns=["doc_id", "dense"])

Contains no run logic: it writes only what a caller passes to it.
"""

from __future__ import annotations

from pipelines.index.reader import Index, open_index

__all__ = ["Index", "open_index"]
