"""Bidirectional encoders with a table of positions: BERT and those that came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.families.base import Family


def _after_padding(model: Mapping[str, Any]) -> int:
    # fairseq's make_positions: real tokens count from padding_idx + 1. Starting at 0 raises
    # nothing and gives plausible, wrong vectors.
    return int(model.get("pad_token_id", 1)) + 1


_NO_POOLER = {"add_pooling_layer": False}

ENCODERS: dict[str, Family] = {
    "bert": Family(
        pooling="cls", layers="encoder.layer.", load_arguments=_NO_POOLER, token_types=True
    ),
    "xlm-roberta": Family(
        pooling="cls",
        layers="encoder.layer.",
        first_position=_after_padding,
        load_arguments=_NO_POOLER,
        token_types=True,
    ),
    "roberta": Family(
        pooling="cls",
        layers="encoder.layer.",
        first_position=_after_padding,
        load_arguments=_NO_POOLER,
        token_types=True,
    ),
}
