"""The configuration of a run over pairs: python -m pipelines.rerank_pairs."""

from __future__ import annotations

import dataclasses

from pydantic import model_validator

from actors.encoded import SCORE
from actors.rerank.config import RerankerConfig
from pipelines.config import AnyRunConfig, absolute_model
from pipelines.config_sections import OUTPUT_COLUMNS, Columns, SourceConfig


class PairColumns(Columns):
    """Which source columns are a pair; inside of structs and JSON objects by dotted path."""

    id: str | None = None
    """Unique id of a pair (string or integer); when not given: the file's name and the position in
    it."""
    query: str = "query"
    """Copied into every output row, as metadata is."""
    text: str = "passage"
    """The passage; `text` in the output."""

    @model_validator(mode="after")
    def _check_query(self) -> PairColumns:
        for name in self.copied:
            if name in (*OUTPUT_COLUMNS, SCORE) or self.copied.count(name) > 1:
                raise ValueError(
                    f"query, metadata: expected names no output column has already, each once, "
                    f"got {name!r}"
                )
        return self

    @property
    def copied(self) -> tuple[str, ...]:
        """The query and the metadata."""
        return (self.query, *self.metadata)

    @property
    def strings(self) -> dict[str, str | None]:
        """As `Columns.strings`."""
        return super().strings | {"query": self.query}


class PairSourceConfig(SourceConfig):
    """The pairs: files on this machine or anywhere fsspec reads (s3://, gs://, az://, https://)."""

    columns: PairColumns = PairColumns()


class PairsConfig(AnyRunConfig):
    """Everything about a run that scores pairs."""

    source: PairSourceConfig
    reranker: RerankerConfig

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
