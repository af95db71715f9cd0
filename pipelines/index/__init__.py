"""The index format: paths, schemas, records, parts, generations, and reading them.

    index = open_index("out/quickstart")
    index.to_table(columns=["doc_id", "dense"])

Writes nothing but what a caller hands over; decides nothing about what a run does.
"""

from __future__ import annotations

from pipelines.index.reader import Index, open_index

__all__ = ["Index", "open_index"]
