"""The corpus: lists files, cuts them into units, and reads documents of every format.

Does not depend on passages, tokens or an index.
"""

from __future__ import annotations

from pipelines.source.source import Source
from pipelines.source.units import Unit

__all__ = ["Source", "Unit"]
