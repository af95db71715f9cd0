"""Stores files on a local disk or an object store: atomic creation, retries, clear errors.

The content of the files is unknown here.
"""

from __future__ import annotations

from pipelines.store.store import Store, open_store

__all__ = ["Store", "open_store"]
