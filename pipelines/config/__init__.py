"""The configuration of a run: its sections, its loader, and its generated documentation.

config = load_config("conf/wiki.yaml", ["slice.documents=500"])
python -m pipelines.config          (prints every key with its default and meaning)
"""

from __future__ import annotations

from pipelines.config.loading import load_config, override, parse_as, parse_config, read_yaml
from pipelines.config.run import AnyRunConfig, PairsConfig, RunConfig

__all__ = [
    "AnyRunConfig",
    "PairsConfig",
    "RunConfig",
    "load_config",
    "override",
    "parse_as",
    "parse_config",
    "read_yaml",
]
