"""The configuration of a run: over documents (`RunConfig`), or over pairs (`PairsConfig`).

The docstrings of sections and fields are the documentation users read: `make docs` after a change.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Self

from pydantic import field_validator, model_validator

from actors.config import ModelConfig, Output, RerankerConfig
from actors.encoded import SCORE
from pipelines.config.sections import (
    OUTPUT_COLUMNS,
    ChunkConfig,
    Columns,
    Count,
    EvaluateConfig,
    GateConfig,
    IndexConfig,
    RayConfig,
    SearchConfig,
    Section,
    Share,
    SliceConfig,
    SourceConfig,
    absolute_uri,
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
        heads = self.model.heads and absolute_uri(self.model.heads)
        model = dataclasses.replace(self.model, name=absolute_model(self.model.name), heads=heads)
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


class PairColumns(Columns):
    """Which source columns are a pair; inside of structs and JSON objects by dotted path."""

    id: str | None = None
    """Unique id of a pair (string or integer); when not given: the file's name and the position in
    it."""
    query: str = "query"
    """Copied into every output row, as metadata is."""
    text: str = "passage"
    """The passage; `text` in the output."""
    title: str | None = None
    """Kept beside each passage, not scored with it; there are no titles when not given."""

    @model_validator(mode="after")
    def _check_query(self) -> PairColumns:
        for name in self.copied:
            if name in (*OUTPUT_COLUMNS, SCORE) or self.copied.count(name) > 1:
                raise ValueError(
                    f"a query and metadata under names no output column has already, each once, "
                    f"not {name!r}"
                )
        return self

    @property
    def copied_strings(self) -> tuple[str, ...]:
        """The query."""
        return (self.query,)

    @property
    def strings(self) -> dict[str, str | None]:
        """As `Columns.strings`."""
        return super().strings | {"query": self.query}


class PairSourceConfig(SourceConfig):
    """The pairs: files on this machine or anywhere fsspec reads (s3://, gs://, az://, https://)."""

    columns: PairColumns = PairColumns()
    limit: Count | None = None
    """Only the first N pairs in plan order."""

    @field_validator("format")
    @classmethod
    def _check_format(cls, name: str) -> str:
        if name in ("text", "lines"):
            raise ValueError("a format with columns, a query and a passage among them")
        return name


class PairSliceConfig(SliceConfig):
    """The unit of work, retry, commit and resume: cut at whichever limit comes first."""

    documents: Count = 1000
    """At most so many pairs; a slice never spans two row groups of the source."""
    max_tokens: Count | None = None
    """The pair that reaches so many tokens is a slice's last; when not given: 1,048,576."""


class PairsConfig(AnyRunConfig):
    """Everything about a run that scores pairs."""

    source: PairSourceConfig
    reranker: RerankerConfig
    slice: PairSliceConfig = PairSliceConfig()
    max_reject_fraction: Share = 0.01
    """A run with a larger share of rejected pairs is not committed; nothing it did is lost."""
    allow_unreadable_units: bool = False
    """Commit without the units (row groups, files, byte ranges) that cannot be read; each is a
    reject, and is tried again by --replay-rejects."""

    def with_absolute_paths(self) -> PairsConfig:
        """As `AnyRunConfig`'s; also of the reranker."""
        own = dataclasses.replace(self.reranker, name=absolute_model(self.reranker.name))
        return super().with_absolute_paths().model_copy(update={"reranker": own})
