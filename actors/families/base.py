"""The record of an architecture that the packed path can run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from actors.config import Pooling


def _zero(model: Mapping[str, Any]) -> int:
    return 0


@dataclass(frozen=True, kw_only=True)
class Family:
    """What its model code needs to be told, and what its checkpoints look like."""

    pooling: Pooling
    """Where neither the configuration nor the checkpoint names one."""
    query_format: str = "{}{}"
    """Where a query's instruction and text go in a model without a record."""
    layers: str
    """What the names of its layers' weights hold; a layer that config.json lacks shows there."""
    first_position: Callable[[Mapping[str, Any]], int] = _zero
    """Position id of a passage's first token, from the model's config.json."""
    load_arguments: Mapping[str, Any] = field(default_factory=dict)
    """For from_pretrained."""
    forward_arguments: Mapping[str, Any] = field(default_factory=dict)
    """For the forward pass."""
    token_types: bool = False
    """It has an embedding of token types, all of which are 0."""
    packed: bool = True
    """Its attention is ours; else it gets padded batches with a mask."""

    def usable_positions(self, model: Mapping[str, Any]) -> int:
        """How many tokens of a passage the model has positions for."""
        return int(model["max_position_embeddings"]) - self.first_position(model)
