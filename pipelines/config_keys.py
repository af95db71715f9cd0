"""Which keys a configuration may have, and what a mistyped one was meant to be."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard

from pydantic import BaseModel

from actors.config import ModelConfig, RerankerConfig
from actors.errors import ConfigError

AnySection: TypeAlias = type[BaseModel] | type[ModelConfig] | type[RerankerConfig]
"""A model's and a reranker's are dataclasses: actors/ knows no pydantic."""


def refuse_unknown_keys(
    raw: Any,
    section: AnySection,
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
            if is_section(child):
                refuse_unknown_keys(value, child, where, (*path, key))


def is_section(hint: Any) -> TypeGuard[AnySection]:
    """Whether a type is a section's."""
    return isinstance(hint, type) and issubclass(hint, BaseModel | ModelConfig | RerankerConfig)


def section_keys(section: AnySection) -> list[str]:
    """The keys a section takes."""
    if issubclass(section, BaseModel):
        fields = section.model_fields  # those of what it inherits from come first
        return sorted(fields, key=lambda name: not fields[name].is_required())
    # `outputs` is a key of its own, beside `model`, so that it is said once.
    return [field.name for field in dataclasses.fields(section) if field.name != "outputs"]


def _suggest(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Expected one of: {', '.join(known)}."
