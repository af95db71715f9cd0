"""Packages that only evaluation or notebooks need; they come with the extras of these names."""

from __future__ import annotations

import importlib
from typing import Any, Literal

from actors.errors import ConfigError

_NEEDED_BY = {"eval": "evaluation", "notebooks": "notebooks"}


def extra(module: str, name: Literal["eval", "notebooks"] = "eval") -> Any:
    """The imported module, of the extra `name`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{_NEEDED_BY[name]}: expected the package {error.name}, found none.",
            f"pip install 'packvec[{name}]'",
        ) from None
