"""Files of an index, on a local disk or an object store: atomic creation, retries, clear errors.

Knows nothing of what the files contain.
"""

from __future__ import annotations

from pipelines.store.store import Store, open_store

__all__ = ["Store", "open_store"]
