"""Records of the supported model architectures.

Imports no torch, so that limits can be checked before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from actors.config import Pooling
from actors.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class Family:
    """Settings of one architecture's code and checkpoints."""

    pooling: Pooling
    """Pooling if neither the configuration nor the checkpoint names one."""
    layers: str
    """Part of the name of every weight in a layer; used to find layers that config.json lacks."""
    after_padding: bool = False
    """Whether positions start after the padding id."""
    load_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for from_pretrained."""
    forward_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for the forward pass."""
    token_types: bool = False
    """Whether the model has an embedding of token types."""
    packed: bool = True
    """Whether the model uses packed attention; otherwise it gets padded batches with a mask."""

    def first_position(self, model: Mapping[str, Any]) -> int:
        """Return the position id of a passage's first token; `model`: its config.json."""
        # As fairseq's make_positions, which starts at padding_idx + 1. Starting at 0 raises no
        # error but gives plausible, wrong vectors.
        return int(model.get("pad_token_id", 1)) + 1 if self.after_padding else 0

    def usable_positions(self, model: Mapping[str, Any]) -> int:
        """Return the number of tokens that have positions; `model`: the model's config.json."""
        return int(model["max_position_embeddings"]) - self.first_position(model)


_NO_POOLER = {"add_pooling_layer": False}
_BERT = Family(pooling="cls", layers="encoder.layer.", load_arguments=_NO_POOLER, token_types=True)
_ROBERTA = replace(_BERT, after_padding=True)
_DECODER = Family(pooling="last_token", layers="layers.", forward_arguments={"use_cache": False})
_REMOTE = Family(
    pooling="cls", layers="layer", load_arguments={"trust_remote_code": True}, packed=False
)

ENCODERS: Mapping[str, Family] = {"bert": _BERT, "xlm-roberta": _ROBERTA, "roberta": _ROBERTA}
"""Bidirectional encoders with learned positions, by model_type."""
# transformers' modules pass windows and capped scores (Gemma 2) to the attention function.
DECODERS: Mapping[str, Family] = dict.fromkeys(
    ("gemma", "gemma2", "mistral", "qwen2", "qwen3"), _DECODER
)
"""Causal decoders with rotary positions and last-token pooling, by model_type."""
FAMILIES: Mapping[str, Family] = {**ENCODERS, **DECODERS}
"""Encoders and decoders, by model_type in config.json."""


def family_of(
    model: Mapping[str, Any],
    name: str,
    *,
    trust_remote_code: bool = False,
    model_type: str | None = None,
) -> Family:
    """Return the record for a model's config.json; `model_type` overrides the one in it.

    Raises:
        ModelError: the architecture has no record, or needs its own code without permission.
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
            "Use a model with one of these architectures.",
        )
    return remote_family(name, trust_remote_code=trust_remote_code)


def remote_family(name: str, *, trust_remote_code: bool) -> Family:
    """Return the record of a model that runs its own code; raise ModelError without permission."""
    if not trust_remote_code:
        raise ModelError(
            f"model {name!r}: needs the Python code of its repository, which only runs if the "
            "configuration allows it.",
            "Read that code, then set model.trust_remote_code=true (batches are padded: slower).",
        )
    return _REMOTE
