"""Which keys a configuration may have, and what a mistyped one was meant to be."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from actors.config import ModelConfig
from actors.errors import ConfigError


def refuse_unknown_keys(
    raw: Any,
    section: type[BaseModel] | type[ModelConfig],
    where: str,
    path: tuple[str, ...] = (),
) -> None:
    """Look for keys that no section has, at every level.

    Raises:
        ConfigError: naming the first, and the nearest one there is.
    """
    if not isinstance(raw, Mapping):
        return  # the type error is pydantic's to report
    hints = typing.get_type_hints(section)
    known = section_keys(section)
    for key, value in raw.items():
        if key not in known:
            raise ConfigError(
                f"{where}: unknown key {'.'.join((*path, str(key)))!r}.", _suggest(str(key), known)
            )
        for child in (hints[key], *typing.get_args(hints[key])):  # a section, or one or None
            if isinstance(child, type) and (issubclass(child, BaseModel) or child is ModelConfig):
                refuse_unknown_keys(value, child, where, (*path, key))


def section_keys(section: type[BaseModel] | type[ModelConfig]) -> list[str]:
    """The keys a section takes."""
    if issubclass(section, BaseModel):
        return list(section.model_fields)
    # `outputs` is a key of its own, beside `model`, so that it is said once.
    return [field.name for field in dataclasses.fields(section) if field.name != "outputs"]


def _suggest(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Expected one of: {', '.join(known)}."
