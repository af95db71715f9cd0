"""JSON files of a model's folder, and what is said of them when they are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from actors.errors import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model's folder.

    Raises:
        ModelError: missing, damaged, or something else than an object.
    """
    value = load_json(path, "a JSON object")
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value


def load_json(path: Path, expected: str) -> Any:
    """Any JSON value; `expected` says in messages what it should be.

    Raises:
        ModelError: missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: expected {expected}, found: {error}.") from None
