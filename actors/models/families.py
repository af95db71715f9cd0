"""What differs between model architectures: one record each.

Knows no torch, so that limits can be checked before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from actors.config import Pooling
from actors.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class Family:
    """What an architecture's model code needs to be told, and what its checkpoints look like."""

    pooling: Pooling
    """Pooling where neither the configuration nor the checkpoint names one."""
    layers: str
    """What the names of its layers' weights hold; a layer that config.json lacks shows there."""
    after_padding: bool = False
    """Positions count from the padding id on."""
    load_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for from_pretrained."""
    forward_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for the forward pass."""
    token_types: bool = False
    """It has an embedding of token types, all of which are 0."""
    packed: bool = True
    """Its attention is ours; else it gets padded batches with a mask."""

    def first_position(self, model: Mapping[str, Any]) -> int:
        """Position id of a passage's first token, from the model's config.json."""
        # fairseq's make_positions: real tokens count from padding_idx + 1. Starting at 0 raises
        # nothing and gives plausible, wrong vectors.
        return int(model.get("pad_token_id", 1)) + 1 if self.after_padding else 0

    def usable_positions(self, model: Mapping[str, Any]) -> int:
        """How many tokens of a passage the model has positions for."""
        return int(model["max_position_embeddings"]) - self.first_position(model)


_NO_POOLER = {"add_pooling_layer": False}
_BERT = Family(pooling="cls", layers="encoder.layer.", load_arguments=_NO_POOLER, token_types=True)
_ROBERTA = replace(_BERT, after_padding=True)
_DECODER = Family(pooling="last_token", layers="layers.", forward_arguments={"use_cache": False})
_REMOTE = Family(
    pooling="cls", layers="layer", load_arguments={"trust_remote_code": True}, packed=False
)

ENCODERS: Mapping[str, Family] = {"bert": _BERT, "xlm-roberta": _ROBERTA, "roberta": _ROBERTA}
"""Bidirectional encoders with a table of positions."""
# Windows and capped scores (Gemma 2) are the modules' own: they tell the attention function.
DECODERS: Mapping[str, Family] = dict.fromkeys(
    ("gemma", "gemma2", "mistral", "qwen2", "qwen3"), _DECODER
)
"""Causal decoders with rotary positions, embedding by their last token."""
FAMILIES: Mapping[str, Family] = {**ENCODERS, **DECODERS}
"""Both, by model_type, as transformers names it in config.json."""


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
    return _REMOTE
