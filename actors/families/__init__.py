"""What differs between model architectures: one record each, in the file of its kind.

Knows no torch, so that limits can be checked before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.errors import ModelError
from actors.families.base import Family
from actors.families.decoders import DECODERS
from actors.families.encoders import ENCODERS

__all__ = ["FAMILIES", "Family", "family_of"]

FAMILIES: Mapping[str, Family] = ENCODERS | DECODERS
"""By model_type, as transformers names it in config.json."""


def family_of(model: Mapping[str, Any], name: str) -> Family:
    """The record for a model's config.json.

    Raises:
        ModelError: an architecture that has no record.
    """
    model_type = str(model.get("model_type"))
    if model_type not in FAMILIES:
        raise ModelError(
            f"model {name!r}: expected an architecture among {', '.join(sorted(FAMILIES))}, "
            f"found {model.get('model_type')!r} in config.json.",
            "Use a model of one of these.",
        )
    return FAMILIES[model_type]
