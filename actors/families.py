"""What differs between model architectures, and nothing else.

A new architecture is one record here. Knows no torch, so that limits can be checked before
anything is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from actors.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class Family:
    """An encoder architecture that the packed path can run."""

    first_position: Callable[[Mapping[str, Any]], int]
    """Position id of a passage's first token, from the model's config.json."""

    def usable_positions(self, model: Mapping[str, Any]) -> int:
        """How many tokens the position table can hold."""
        return int(model["max_position_embeddings"]) - self.first_position(model)


def _zero(model: Mapping[str, Any]) -> int:
    return 0


def _after_padding(model: Mapping[str, Any]) -> int:
    # fairseq's make_positions: real tokens count from padding_idx + 1. Starting at 0 raises
    # nothing and gives plausible, wrong vectors.
    return int(model.get("pad_token_id", 1)) + 1


FAMILIES: dict[str, Family] = {
    "bert": Family(first_position=_zero),
    "xlm-roberta": Family(first_position=_after_padding),
    "roberta": Family(first_position=_after_padding),
}


def family_of(model: Mapping[str, Any], name: str) -> Family:
    """The record for a model's config.json.

    Raises:
        ModelError: an architecture that has no record.
    """
    model_type = model.get("model_type")
    if model_type not in FAMILIES:
        raise ModelError(
            f"model {name!r}: expected an architecture among {', '.join(sorted(FAMILIES))}, "
            f"found {model_type!r} in config.json.",
            "Use a model of one of these.",
        )
    return FAMILIES[model_type]
