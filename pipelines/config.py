"""The configuration of a run: the sum of its sections, read from YAML and checked.

    config = load_config("conf/wiki.yaml", ["slice.documents=500"])
    python -m pipelines.config          (every key, its default and meaning)

Unknown keys are errors; paths are relative to the current directory. The docstrings of sections and
fields are the documentation users read: `make docs` after a change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import ValidationError, model_validator

from actors.config import ModelConfig, Output
from actors.errors import ConfigError
from pipelines.config_base import Count, Section, Share
from pipelines.config_keys import refuse_unknown_keys
from pipelines.config_search import EvaluateConfig, SearchConfig
from pipelines.config_sections import (
    ChunkConfig,
    GateConfig,
    IndexConfig,
    RayConfig,
    SliceConfig,
    SourceConfig,
)


class AnyRunConfig(Section):
    """What runs of every kind have: rows to read, an index to write, slices, a cluster."""

    source: SourceConfig
    index: IndexConfig
    slice: SliceConfig = SliceConfig()
    ray: RayConfig = RayConfig()
    max_reject_fraction: Share = 0.01
    """A run with a larger share of rejected documents is not committed; nothing it did is lost."""
    allow_unreadable_units: bool = False
    """Commit without the units (row groups, files, byte ranges) that cannot be read; each is a
    reject, and is tried again by re-indexing and --replay-rejects."""

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        for uri in self.source.uris:
            if absolute_uri(self.index.uri).startswith(absolute_uri(uri).rstrip("/") + "/"):
                # The next run would find its own parts among the documents.
                raise ValueError(
                    f"index.uri: expected a place outside of source.uri ({uri}), "
                    f"got {self.index.uri}"
                )
        return self

    @property
    def slice_max_tokens(self) -> int:
        """The token limit of a slice."""
        return self.slice.max_tokens or 1_048_576

    def with_absolute_paths(self) -> Self:
        """Relative local paths are relative to this process's directory, not to a worker's."""
        uri = self.source.uri
        place = absolute_uri(uri) if isinstance(uri, str) else tuple(map(absolute_uri, uri))
        source = self.source.model_copy(update={"uri": place})
        index = self.index.model_copy(update={"uri": absolute_uri(self.index.uri)})
        return self.model_copy(update={"source": source, "index": index})

    def resolved(self) -> dict[str, Any]:
        """Plain data, defaults filled in, secrets out: fit to be stored with the index."""
        record = self.model_dump(mode="json")
        record["slice"]["max_tokens"] = self.slice_max_tokens
        for section in ("source", "index"):
            options = record[section]["storage_options"]
            record[section]["storage_options"] = dict.fromkeys(options, "***")
        return record


AnyConfig = TypeVar("AnyConfig", bound=AnyRunConfig)


class RunConfig(AnyRunConfig):
    """Everything about one run."""

    model: ModelConfig
    outputs: tuple[Output, ...] = ("dense",)
    """The vectors to compute, all in one forward pass, and to store: one or more, each once."""
    chunk: ChunkConfig = ChunkConfig()
    gate: GateConfig = GateConfig()
    search: SearchConfig = SearchConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    confirm_bytes: Count | None = 1_000_000_000_000
    """A run that would write more than so many bytes (as --dry-run estimates) asks first, or needs
    --yes; null: never."""

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if not self.outputs or len(set(self.outputs)) != len(self.outputs):
            raise ValueError("outputs: expected one or more of dense, sparse, colbert, each once")
        judged = self.evaluate.queries and self.evaluate.qrels
        if self.gate.quality and not judged and self.source.format != "beir":
            raise ValueError("gate.quality: expected evaluate.queries and evaluate.qrels with it")
        return self

    @property
    def encoder(self) -> ModelConfig:
        """What the actors load: the model section and the outputs."""
        return dataclasses.replace(self.model, outputs=self.outputs)

    @property
    def slice_max_tokens(self) -> int:
        """The token limit of a slice: at most about 256 MB of output."""
        return self.slice.max_tokens or (131_072 if "colbert" in self.outputs else 1_048_576)

    def with_absolute_paths(self) -> RunConfig:
        """As `AnyRunConfig`'s; also of the model."""
        model = dataclasses.replace(self.model, name=absolute_model(self.model.name))
        if model.heads:
            model = dataclasses.replace(model, heads=absolute_uri(model.heads))
        return super().with_absolute_paths().model_copy(update={"model": model})

    def resolved(self) -> dict[str, Any]:
        """As `AnyRunConfig`'s."""
        record = super().resolved()
        record["model"].pop("outputs")
        return record


def absolute_model(name: str) -> str:
    """A model's name; where it is a local folder, from the root on."""
    is_folder = "://" not in name and Path(name).expanduser().is_dir()
    return absolute_uri(name) if is_folder else name


def absolute_uri(path: str) -> str:
    """A local path from the root on; a URI as it is."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and apply `a.b=value` overrides (values are YAML too).

    Raises:
        ConfigError: no such file, not YAML, an unknown key, a value of the wrong type.
    """
    return parse_config(read_yaml(path, overrides), where=str(path))


def read_yaml(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The sections of a YAML file, overrides applied; not validated.

    Raises:
        ConfigError: no such file, not YAML, an override that is none.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no such configuration: {path}.", "See conf/ for examples.") from None
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
    """A configuration with `a.b=value` overrides, as `load_config` applies them.

    Raises:
        ConfigError: as there.
    """
    if not overrides:
        return config
    raw = config.model_dump(mode="json")
    raw["model"].pop("outputs", None)
    for one in overrides:
        _apply(raw, one)
    return parse_config(raw, where="--set")


def parse_config(raw: Mapping[str, Any], *, where: str = "configuration") -> RunConfig:
    """Validate plain data.

    Raises:
        ConfigError: an unknown key or a value of the wrong type.
    """
    return parse_as(RunConfig, raw, where)


def parse_as(kind: type[AnyConfig], raw: Mapping[str, Any], where: str) -> AnyConfig:
    """As `parse_config`, of runs of any kind."""
    refuse_unknown_keys(raw, kind, where)
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(describe_invalid(error, where)) from None


def describe_invalid(error: ValidationError, where: str) -> str:
    """The first thing that is wrong with a configuration, in one line."""
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
    section = raw
    for parent in parents:
        child = section.setdefault(parent, {})
        if child is None:
            child = section[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override!r}: {parent} is a value, not a section.")
        section = child
    try:
        section[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: {' '.join(str(error).split())}.") from None


if __name__ == "__main__":
    from pipelines.config_docs import app  # late: it imports this module, under its own name

    app()
