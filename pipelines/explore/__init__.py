"""A notebook's view of an index: samples, neighbours, charts.

from pipelines.explore import explore
"""

from __future__ import annotations

from pipelines.explore.exploration import Exploration, explore

__all__ = ["Exploration", "explore"]
