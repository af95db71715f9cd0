"""Reads configuration files, applies overrides and validates the result.

    config = load_config("conf/wiki.yaml", ["slice.documents=500"])
    python -m pipelines.config          (prints every key with its default and meaning)

Unknown keys are errors; paths are relative to the current directory.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from actors.errors import ConfigError
from pipelines.config.docs import entries
from pipelines.config.run import RunConfig
from pipelines.config.sections import Section

AnySection = TypeVar("AnySection", bound=Section)

# Names that other libraries use for a key.
_ALSO_CALLED = {
    "size": "max_tokens",
    "chunk_size": "max_tokens",
    "batch_size": "max_batch_tokens",
    "path": "uri",
    "url": "uri",
    "use_fp16": "dtype",
    "max_seq_length": "max_length",
}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and apply `a.b=value` overrides, whose values are YAML too.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, or a value is invalid.
    """
    return parse_config(read_yaml(path, overrides), where=str(path))


def read_yaml(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file and apply overrides, without validation.

    Raises:
        ConfigError: the file does not exist or is not YAML, or an override is malformed.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no such configuration: {path}.", "Examples are in conf/.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path}: expected YAML, found: {' '.join(str(error).split())}."
        ) from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected sections (source, index, model, ...), found {raw!r}.")
    for override in overrides:
        _apply(raw, override)
    return raw


def override(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return a configuration changed by `a.b=value` overrides.

    Raises:
        ConfigError: an override is malformed, names an unknown key, or has a wrong value.
    """
    if not overrides:
        return config
    raw = config.model_dump(mode="json")
    raw["model"].pop("outputs", None)
    for one in overrides:
        _apply(raw, one)
    return parse_config(raw, where="--set")


def parse_config(raw: Mapping[str, Any], *, where: str = "configuration") -> RunConfig:
    """Validate the plain data of a run's configuration.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type.
    """
    return parse_as(RunConfig, raw, where)


def parse_as(kind: type[AnySection], raw: Mapping[str, Any], where: str) -> AnySection:
    """Validate plain data as a configuration of the given kind; raises as `parse_config`."""
    try:
        found = kind.model_validate(raw)
    except ValidationError as error:
        _refuse_unknown_keys(raw, _known(kind), where)
        raise ConfigError(describe_invalid(error, where)) from None
    if "outputs" in (
        raw.get("model") or {}
    ):  # a field of ModelConfig that is no key: `outputs` beside `model` sets it
        _refuse_unknown_keys(raw, _known(kind), where)
    return found


def describe_invalid(error: ValidationError, where: str) -> str:
    """Return the first problem of a configuration, in one line."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{where}: {key} is required."
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if not key:
        return f"{where}: {message}."
    return f"{where}: {key}: expected {message}, got {first['input']!r:.80}."


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: expected a.b=value.")
    *parents, last = key.split(".")
    section: Any = raw
    for parent in parents:
        if section.get(parent) is None:
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            raise ConfigError(f"--set {override!r}: {parent} is a value, not a section.")
    try:
        section[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: {' '.join(str(error).split())}.") from None


@cache
def _known(kind: type[Section]) -> Mapping[str, bool]:
    """Map the dotted path of every key and section to whether it is a section."""
    return {entry.path: not entry.type for entry in entries(kind, linked=True)}


def _refuse_unknown_keys(raw: Any, known: Mapping[str, bool], where: str, path: str = "") -> None:
    """Raise ConfigError for the first unknown key at any level, and suggest the nearest known one.

    Unknown keys are reported before all other mistakes.
    """
    if not isinstance(raw, Mapping):  # pydantic reports the type error
        return
    names = [key[len(path) :] for key in known if key.startswith(path)]
    names = [name for name in names if "." not in name]
    for key, value in raw.items():
        if key not in names:
            other = _ALSO_CALLED.get(str(key))
            close = [other] if other in names else difflib.get_close_matches(str(key), names, n=1)
            raise ConfigError(
                f"{where}: unknown key {f'{path}{key}'!r}.",
                f"Did you mean {close[0]!r}?" if close else f"Expected one of: {', '.join(names)}.",
            )
        if known[f"{path}{key}"]:
            _refuse_unknown_keys(value, known, where, f"{path}{key}.")
