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
from actors.families.remote import REMOTE

__all__ = ["FAMILIES", "Family", "family_of", "remote_family"]

FAMILIES: Mapping[str, Family] = ENCODERS | DECODERS
"""By model_type, as transformers names it in config.json."""


def family_of(
    model: Mapping[str, Any],
    name: str,
    *,
    trust_remote_code: bool = False,
    model_type: str | None = None,
) -> Family:
    """The record for a model's config.json; `model_type`: instead of the one it names.

    Raises:
        ModelError: an architecture that has no record, or whose own code is not to be run.
    """
    if model_type is not None and model_type not in FAMILIES:
        raise ModelError(
            f"model.family: expected one of {', '.join(sorted(FAMILIES))}, got {model_type!r}."
        )
    model_type = model_type or str(model.get("model_type"))
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    if "auto_map" not in model:
        raise ModelError(
            f"model {name!r}: expected an architecture among {', '.join(sorted(FAMILIES))}, "
            f"found {model.get('model_type')!r} in config.json.",
            "Use a model of one of these.",
        )
    return remote_family(name, trust_remote_code=trust_remote_code)


def remote_family(name: str, *, trust_remote_code: bool) -> Family:
    """The record of a model that is run by the code that comes with it.

    Raises:
        ModelError: that is not allowed.
    """
    if not trust_remote_code:
        raise ModelError(
            f"model {name!r}: needs the Python code of its repository, which is not run unless "
            "the configuration says so.",
            "Read that code, then set model.trust_remote_code=true (batches are padded: slower).",
        )
    return REMOTE
