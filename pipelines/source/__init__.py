"""The corpus: listing files, cutting them into units, and reading documents of every format.

Knows nothing of passages, tokens or an index.
"""

from __future__ import annotations

from pipelines.source.source import Source
from pipelines.source.units import Unit

__all__ = ["Source", "Unit"]
