"""Causal decoders with rotary positions, embedding by their last token.

Windows and capped scores (Gemma2) are the modules' own: they tell the attention function of them.
"""

from __future__ import annotations

from actors.families.base import Family

_DECODER = Family(pooling="last_token", layers="layers.", forward_arguments={"use_cache": False})

DECODERS: dict[str, Family] = {
    "gemma": _DECODER,
    "gemma2": _DECODER,
    "mistral": _DECODER,
    "qwen2": _DECODER,
    "qwen3": _DECODER,
}
