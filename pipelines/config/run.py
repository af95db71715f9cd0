"""The configuration of a run over documents (`RunConfig`) or over pairs (`PairsConfig`).

Users read the docstrings of sections and fields as documentation: run `make docs` after a change.
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
    """The keys of every kind of run: a source, an index, slices and a cluster."""

    source: SourceConfig
    index: IndexConfig
    slice: SliceConfig = SliceConfig()
    ray: RayConfig = RayConfig()
    max_reject_fraction: Share = 0.01
    """Largest share of rejected documents. A run above it fails; finished slices are kept."""
    allow_unreadable_units: bool = False
    """Commit even if some units (row groups, files, byte ranges) cannot be read. Each of them is
    stored as a reject; re-indexing and --replay-rejects try it again."""

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        for uri in self.source.uris:
            if absolute_uri(self.index.uri).startswith(absolute_uri(uri).rstrip("/") + "/"):
                # The next run would read the index's own parts as documents.
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
        """Make local paths absolute; a worker may have another current directory."""
        uri = self.source.uri
        place = absolute_uri(uri) if isinstance(uri, str) else tuple(map(absolute_uri, uri))
        source = self.source.model_copy(update={"uri": place})
        index = self.index.model_copy(update={"uri": absolute_uri(self.index.uri)})
        return self.model_copy(update={"source": source, "index": index})

    def resolved(self) -> dict[str, Any]:
        """Return plain data to store with the index: defaults filled in, secrets masked."""
        record = self.model_dump(mode="json")
        record["slice"]["max_tokens"] = self.slice_max_tokens
        for section in ("source", "index"):
            options = record[section]["storage_options"]
            record[section]["storage_options"] = dict.fromkeys(options, "***")
        return record


class RunConfig(AnyRunConfig):
    """The configuration of a run over documents."""

    model: ModelConfig
    outputs: tuple[Output, ...] = ("dense",)
    """Kinds of vectors to compute, all in one forward pass, and to store; each at most once."""
    chunk: ChunkConfig = ChunkConfig()
    gate: GateConfig = GateConfig()
    search: SearchConfig = SearchConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    confirm_bytes: Count | None = 1_000_000_000_000
    """Estimated size of the output, in bytes, above which a run asks for confirmation or needs
    --yes; null: never ask."""

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if not self.outputs or len(set(self.outputs)) != len(self.outputs):
            raise ValueError("outputs: expected one or more of dense, sparse, colbert, each once")
        judged = self.evaluate.queries and self.evaluate.qrels
        if self.gate.quality and not judged and self.source.format != "beir":
            raise ValueError("gate.quality: expected evaluate.queries and evaluate.qrels as well")
        return self

    @property
    def encoder(self) -> ModelConfig:
        """The model section and the outputs, as the actors load them."""
        return dataclasses.replace(self.model, outputs=self.outputs)

    @property
    def slice_max_tokens(self) -> int:
        """The token limit of a slice, which keeps its output below about 256 MB by default."""
        return self.slice.max_tokens or (131_072 if "colbert" in self.outputs else 1_048_576)

    def with_absolute_paths(self) -> RunConfig:
        """Make local paths absolute, also those of the model and its heads."""
        heads = self.model.heads and absolute_uri(self.model.heads)
        model = dataclasses.replace(self.model, name=absolute_model(self.model.name), heads=heads)
        return super().with_absolute_paths().model_copy(update={"model": model})

    def resolved(self) -> dict[str, Any]:
        """Return plain data to store with the index; `outputs` appears once, at the top level."""
        record = super().resolved()
        record["model"].pop("outputs")
        return record


def absolute_model(name: str) -> str:
    """Return the absolute path of a model in a local folder, and any other name unchanged."""
    is_folder = "://" not in name and Path(name).expanduser().is_dir()
    return absolute_uri(name) if is_folder else name


class PairColumns(Columns):
    """Names of the source columns. A dotted path names a field inside a struct or JSON object."""

    id: str | None = None
    """Column of the unique id of a pair (string or integer). When not given, the id is the name of
    the file and the position in it."""
    query: str = "query"
    """Column of the query; copied into every output row."""
    text: str = "passage"
    """Column of the passage, which is called `text` in the output."""
    title: str | None = None
    """Column of the title, which is stored but not scored; no titles when not given."""

    @model_validator(mode="after")
    def _check_query(self) -> PairColumns:
        for name in self.copied:
            if name in (*OUTPUT_COLUMNS, SCORE) or self.copied.count(name) > 1:
                raise ValueError(
                    "query and metadata columns with different names that no output column has, "
                    f"not {name!r}"
                )
        return self

    @property
    def copied_strings(self) -> tuple[str, ...]:
        """The query column."""
        return (self.query,)

    @property
    def strings(self) -> dict[str, str | None]:
        """The columns that must hold strings, by key: those of `Columns` and the query."""
        return super().strings | {"query": self.query}


class PairSourceConfig(SourceConfig):
    """The pairs: local files, or files that fsspec can read (s3://, gs://, az://, https://)."""

    columns: PairColumns = PairColumns()
    limit: Count | None = None
    """Read only the first N pairs, in the order of the plan."""

    @field_validator("format")
    @classmethod
    def _check_format(cls, name: str) -> str:
        if name in ("text", "lines"):
            raise ValueError("a format with columns for the query and the passage")
        return name


class PairSliceConfig(SliceConfig):
    """The size of a slice, the unit of work, retry and resume. The first limit reached ends it."""

    documents: Count = 1000
    """Largest number of pairs in a slice. A slice never spans two row groups of the source."""
    max_tokens: Count | None = None
    """Number of tokens that ends a slice, with the pair that reaches it; default: 1,048,576."""


class PairsConfig(AnyRunConfig):
    """The configuration of a run that scores pairs."""

    source: PairSourceConfig
    reranker: RerankerConfig
    slice: PairSliceConfig = PairSliceConfig()
    max_reject_fraction: Share = 0.01
    """Largest share of rejected pairs. A run above it fails; finished slices are kept."""
    allow_unreadable_units: bool = False
    """Commit even if some units (row groups, files, byte ranges) cannot be read. Each of them is
    stored as a reject; --replay-rejects tries it again."""

    def with_absolute_paths(self) -> PairsConfig:
        """Make local paths absolute, also that of the reranker."""
        own = dataclasses.replace(self.reranker, name=absolute_model(self.reranker.name))
        return super().with_absolute_paths().model_copy(update={"reranker": own})
