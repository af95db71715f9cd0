"""The configuration of a run: each part owns its section, the run's configuration is their sum.

    config = load_config("conf/wiki.yaml", ["slice.documents=500"])
    python -m pipelines.config          (every key, its default and meaning)

Unknown keys are errors; paths are relative to the current directory. The docstrings of sections and
fields are the documentation users read: `make docs` after a change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from actors.config import OUTPUTS, ModelConfig, Output
from actors.errors import ConfigError
from pipelines.config_keys import refuse_unknown_keys

Count = Annotated[int, Field(ge=1)]
Character = Annotated[str, Field(min_length=1, max_length=1)]


OUTPUT_COLUMNS = (
    *("doc_id", "passage_id", "passage_no", "text", "title", "n_tokens", "truncated"),
    *("char_start", "char_end", "passage_hash", "input_ids", *OUTPUTS),
)
"""Names that a metadata column cannot have."""


class Section(BaseModel):
    """A part of the configuration; frozen, so that what was validated stays valid."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Columns(Section):
    """Which source columns mean what; inside of structs and JSON objects by dotted path."""

    id: str | None = "id"
    """Unique id of a document (string or integer); null where there is none: then an id is the
    file's name and the position in it, and a document that moves is a new one to re-indexing."""
    text: str = "text"
    """What is embedded."""
    title: str | None = None
    """Kept beside each passage; there are no titles when not given."""
    metadata: tuple[str, ...] = ()
    """Columns copied into every output row."""

    @field_validator("metadata")
    @classmethod
    def _check_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name in OUTPUT_COLUMNS or names.count(name) > 1:
                raise ValueError(f"names no output column has already, each once, not {name!r}")
        return names


class CsvConfig(Section):
    """How CSV and TSV files are written."""

    delimiter: Character | None = None
    """Between fields; when not given: a comma, in TSV files a tab."""
    quote: Character | None = '"'
    """Around fields that hold a delimiter or a line end; null where quotes mean nothing."""


class SourceConfig(Section):
    """The documents: files on this machine or anywhere fsspec reads (s3://, gs://, az://,
    https://).
    """

    uri: str | tuple[str, ...]
    """A file, a folder (every file below it of the one format), a glob, or a list of these."""
    format: Literal["auto", "parquet", "jsonl", "csv", "tsv", "text", "lines", "wikiextractor"] = (
        "auto"
    )
    """"auto": by extension, else by how a file begins; "text": a document a file; "lines": a
    document a line. All but Parquet may be compressed (.gz, .zst, .bz2)."""
    columns: Columns = Columns()
    csv: CsvConfig = CsvConfig()
    limit: Count | None = None
    """Only the first N documents in plan order."""
    storage_options: dict[str, Any] = {}
    """Passed to fsspec (keys, endpoint); never stored with the index."""

    @field_validator("uri", mode="before")
    @classmethod
    def _check_uri(cls, uri: Any) -> Any:
        several = isinstance(uri, list | tuple) and all(isinstance(each, str) for each in uri)
        if not uri or not (isinstance(uri, str) or several):
            raise ValueError("a string or a list of strings")
        return uri

    @property
    def uris(self) -> tuple[str, ...]:
        """One or several."""
        return (self.uri,) if isinstance(self.uri, str) else self.uri

    @property
    def described(self) -> str:
        """For messages."""
        first, *more = self.uris
        return f"{first} and {len(more)} more" if more else first


class IndexConfig(Section):
    """Where the vectors go and how they are stored."""

    uri: str
    """The folder to write: a local path, s3://, gs://, az:// or abfs://."""
    store_text: bool = True
    """Keep each passage's text in the index."""
    colbert_storage: Literal["values", "bytes"] = "values"
    """"values": readable by every Parquet reader; "bytes": raw fp16, many times faster to write."""
    storage_options: dict[str, Any] = {}
    """Passed to fsspec (keys, endpoint); never stored with the index."""


class ChunkConfig(Section):
    """How a document becomes passages."""

    by: Literal["none", "tokens"] = "tokens"
    """"tokens": passages of at most `max_tokens`, cut at headings, paragraphs, sentences, words;
    "none": the document is one passage, truncated at the model's max_length."""
    max_tokens: Count | None = None
    """Special tokens included; the model's max_length when not given."""
    overlap: Annotated[int, Field(ge=0)] = 0
    """At most so many tokens are repeated from the end of the passage before."""
    title_prefix: bool = False
    """Put the document's title and a newline before every passage for the encoder; counted in
    max_tokens, never stored in `text`. A title longer than half of max_tokens is cut, and the
    passages marked `truncated`."""
    markup: Literal["auto", "plain", "markdown"] = "auto"
    """Which headings passages are cut at: "auto": Markdown's `# Title`; "markdown": underlined
    ones too; "plain": none."""


class SliceConfig(Section):
    """The unit of work, retry, commit and resume: cut at whichever limit comes first."""

    documents: Count = 1000
    """At most so many documents; a slice never spans two row groups of the source."""
    max_tokens: Count | None = None
    """The document that reaches so many tokens is a slice's last; when not given: 131,072 with
    ColBERT (256 MB at 1,024 dimensions), 1,048,576 without."""


class RayConfig(Section):
    """Where and how wide the run is executed; never part of what decides the result."""

    address: str | None = None
    """An existing cluster; RAY_ADDRESS when not given, else a local one is started."""
    actors: Count | None = None
    """Encoder actors; one per GPU when not given, one on a machine without."""
    min_actors: Count | None = None
    """Instead of `actors`, on a cluster that grows and shrinks: so many (1) must fit to start."""
    max_actors: Count | None = None
    """Instead of `actors`: grow up to so many while the run lasts; when not given, as many as fit
    when it starts."""
    gpus_per_actor: Annotated[float, Field(ge=0)] | None = None
    """1 when the cluster has GPUs, else 0."""
    cpus_per_actor: Count | None = None
    """1 beside a GPU; without one: how many threads an actor computes with (2)."""
    slices_per_actor: Count = 2
    """Slices an actor holds at once: one encodes while the others are written."""
    stuck_minutes: Annotated[float, Field(gt=0)] = 60.0
    """A run in which nothing moves for so long stops and says where; longer than a slice takes."""

    @model_validator(mode="after")
    def _check_actors(self) -> RayConfig:
        least, most = self.min_actors or 1, self.max_actors
        if self.actors and (self.min_actors or most):
            raise ValueError("actors: expected it, or min_actors and max_actors, got both")
        if most and most < least:
            raise ValueError(f"max_actors: expected at least min_actors ({least}), got {most}")
        return self


class RunConfig(Section):
    """Everything about one run."""

    source: SourceConfig
    index: IndexConfig
    model: ModelConfig
    outputs: tuple[Output, ...] = ("dense",)
    """The vectors to compute, all in one forward pass, and to store: one or more, each once."""
    chunk: ChunkConfig = ChunkConfig()
    slice: SliceConfig = SliceConfig()
    ray: RayConfig = RayConfig()
    max_reject_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    """A run with a larger share of rejected documents is not committed; nothing it did is lost."""
    allow_unreadable_units: bool = False
    """Commit without the units (row groups, files, byte ranges) that cannot be read; each is a
    reject, and is tried again by --replay-rejects."""
    confirm_bytes: Count | None = 1_000_000_000_000
    """A run that would write more than so many bytes (as --dry-run estimates) asks first, or needs
    --yes; null: never."""

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if not self.outputs or len(set(self.outputs)) != len(self.outputs):
            raise ValueError("outputs: expected one or more of dense, sparse, colbert, each once")
        for uri in self.source.uris:
            if absolute_uri(self.index.uri).startswith(absolute_uri(uri).rstrip("/") + "/"):
                # The next run would find its own parts among the documents.
                raise ValueError(
                    f"index.uri: expected a place outside of source.uri ({uri}), "
                    f"got {self.index.uri}"
                )
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
        """Relative local paths are relative to this process's directory, not to a worker's."""
        model = self.model
        if "://" not in model.name and Path(model.name).expanduser().is_dir():
            model = dataclasses.replace(model, name=absolute_uri(model.name))
        if model.heads:
            model = dataclasses.replace(model, heads=absolute_uri(model.heads))
        uri = self.source.uri
        place = absolute_uri(uri) if isinstance(uri, str) else tuple(map(absolute_uri, uri))
        source = self.source.model_copy(update={"uri": place})
        index = self.index.model_copy(update={"uri": absolute_uri(self.index.uri)})
        return self.model_copy(update={"model": model, "source": source, "index": index})

    def resolved(self) -> dict[str, Any]:
        """Plain data, defaults filled in, secrets out: fit to be stored with the index."""
        record = self.model_dump(mode="json")
        record["model"].pop("outputs")
        record["slice"]["max_tokens"] = self.slice_max_tokens
        for section in ("source", "index"):
            options = record[section]["storage_options"]
            record[section]["storage_options"] = dict.fromkeys(options, "***")
        return record


def absolute_uri(path: str) -> str:
    """A local path from the root on; a URI as it is."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and apply `a.b=value` overrides (values are YAML too).

    Raises:
        ConfigError: no such file, not YAML, an unknown key, a value of the wrong type.
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
    return parse_config(raw, where=str(path))


def parse_config(raw: Mapping[str, Any], *, where: str = "configuration") -> RunConfig:
    """Validate plain data.

    Raises:
        ConfigError: an unknown key or a value of the wrong type.
    """
    refuse_unknown_keys(raw, RunConfig, where)
    try:
        return RunConfig.model_validate(raw)
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
