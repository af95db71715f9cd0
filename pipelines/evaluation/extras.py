"""Packages that only evaluation needs; they come with the extra `eval`."""

from __future__ import annotations

import importlib
from typing import Any

from actors.errors import ConfigError


def extra(module: str) -> Any:
    """The imported module.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"evaluation: expected the package {error.name}, found none.",
            "pip install 'packvec[eval]'",
        ) from None
