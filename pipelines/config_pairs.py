"""The configuration of a run over pairs: python -m pipelines.rerank_pairs."""

from __future__ import annotations

import dataclasses

from pydantic import field_validator, model_validator

from actors.config import RerankerConfig
from actors.encoded import SCORE
from pipelines.config import AnyRunConfig, absolute_model
from pipelines.config_base import Count, Share
from pipelines.config_sections import OUTPUT_COLUMNS, Columns, SliceConfig, SourceConfig


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
    def copied(self) -> tuple[str, ...]:
        """The query and the metadata."""
        return (self.query, *self.metadata)

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


_INTRO = """\
# Configuration of a run over pairs

<!-- Written by `make docs` from the docstrings of the sections. -->

One YAML file describes one run of `python -m pipelines.rerank_pairs`; `conf/rerank.yaml` is an
example, and [reranking.md](reranking.md) says what comes out. Only three keys are required:

```yaml
source: {uri: pairs.parquet}
index: {uri: out/scores}
reranker: {name: BAAI/bge-reranker-v2-m3}
```

What [configuration.md](configuration.md) says of `--set`, paths, secrets and `null` holds here
too."""


if __name__ == "__main__":
    from pipelines.config_docs import markdown

    print(markdown(PairsConfig, _INTRO), end="")  # noqa: T201
