"""Exploration of an index in a notebook: samples, neighbours and charts.

from pipelines.explore import explore
"""

from __future__ import annotations

from pipelines.explore.exploration import Exploration, explore

__all__ = ["Exploration", "explore"]
