"""The sections of configuration files, each with its keys.

The docstrings of sections and fields are the documentation users read: `make docs` after a change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from actors.config import OUTPUTS

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Character = Annotated[str, Field(min_length=1, max_length=1)]
Mode = Literal["dense", "sparse", "colbert", "hybrid", "rrf"]

OUTPUT_COLUMNS = (
    *("doc_id", "passage_id", "passage_no", "text", "title", "n_tokens", "truncated"),
    *("char_start", "char_end", "passage_hash", "input_ids", *OUTPUTS),
)
"""Names that a metadata column cannot have."""


class Section(BaseModel):
    """A part of the configuration; frozen, so that what was validated stays valid."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


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

    @property
    def copied(self) -> tuple[str, ...]:
        """Every column that is copied into the output rows."""
        return (*self.copied_strings, *self.metadata)

    @property
    def copied_strings(self) -> tuple[str, ...]:
        """Those of them that must hold strings, and come out as strings."""
        return ()

    @property
    def by_key(self) -> dict[str, str | None]:
        """The columns by the keys that name them."""
        named = {f"metadata[{i}]": name for i, name in enumerate(self.metadata)}
        return {**self.strings, **named}

    @property
    def strings(self) -> dict[str, str | None]:
        """Those of them that must hold strings (an id: or integers)."""
        return {"id": self.id, "text": self.text, "title": self.title}


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
    format: Literal[
        "auto", "parquet", "jsonl", "beir", "csv", "tsv", "text", "lines", "wikiextractor"
    ] = "auto"
    """"auto": by extension, else by how a file begins; "beir": of a folder only corpus.jsonl;
    "text": a document a file; "lines": a document a line. All but Parquet may be compressed (.gz,
    .zst, .bz2)."""
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
    """Where the result goes and how it is stored."""

    uri: str
    """The folder to write: a local path, s3://, gs://, az:// or abfs://."""
    store_text: bool = True
    """Keep each passage's text in the index."""
    colbert_storage: Literal["values", "bytes"] = "values"
    """Of ColBERT vectors. "values": readable by every Parquet reader; "bytes": raw fp16, many times
    faster to write."""
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

    engine: Literal["ray", "in_process"] = "ray"
    """"in_process": read and encode in this process, one slice after the other, without starting
    Ray; for small corpora. The index is the same; the other keys of this section are not used."""
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
    """1 beside a GPU; without one: how many threads an actor computes with, three quarters of its
    machine's cores when not given."""
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


class SearchConfig(Section):
    """How an index is searched: search_index, evaluate_index and the endpoint; never part of what
    decides what is in it.
    """

    weights: tuple[Weight, Weight, Weight] = (1.0, 1.0, 1.0)
    """Of dense, sparse and ColBERT scores in hybrid: their weighted mean, over the outputs the
    index has. FlagEmbedding's default; its documentation uses [0.4, 0.2, 0.4]."""
    rrf_k: Count = 60
    """Reciprocal rank fusion adds 1 / (rrf_k + rank) over the outputs."""
    rrf_depth: Count = 1000
    """So many of each output, passages or documents, take part in it; no more are found."""
    candidates: Count | None = None
    """ColBERT, hybrid and rrf score only the best so many of dense and of sparse; every passage
    when not given."""
    shards: Count | None = None
    """Search actors that share the passages; one on each machine of the cluster when not given."""
    gpus_per_shard: Annotated[float, Field(ge=0)] = 0
    """GPUs of a search actor, also a fraction: dense and ColBERT vectors are then held and scored
    there."""
    cpus_per_shard: Count | None = None
    """CPUs of a search actor, and the threads it scores with; half of its machine's when not
    given."""
    max_memory_bytes: Count | None = None
    """A search that needs more on a machine is refused; what is free there when not given."""
    folder: str | None = None
    """Where each machine keeps the vectors in a form that can be mapped; packvec/search in the
    user's cache when not given."""

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if not sum(weights):
            raise ValueError("a weight other than 0")
        return weights


class EvaluateConfig(Section):
    """Judged queries, and how evaluate_index measures what a search of them finds."""

    queries: str | None = None
    """JSON lines with `_id` and `text`; the dataset's own when not given and source.format is
    beir."""
    qrels: str | None = None
    """Judgements: query-id, corpus-id and score between tabs, with a header or without (BEIR's), or
    TREC's four columns; the dataset's own when not given and source.format is beir."""
    split: str = "test"
    """Of a BEIR dataset: which of its qrels/."""
    modes: Annotated[tuple[Mode, ...], Field(min_length=1)] | None = None
    """Ways to search; all that the index's outputs allow when not given."""
    depth: Annotated[int, Field(ge=100)] = 1000
    """Documents of each query that are looked at; R@100 needs 100."""
    bm25: Literal["words", "tokens"] | None = "words"
    """BM25 beside them: of words, or of the model's tokens, for languages without spaces; null:
    none. It needs the texts in the index."""
    ignore_identical_ids: bool = False
    """A document with the id of its query is no result, as BEIR has it in ArguAna and Quora."""
    out: str = "out/evaluation"
    """The folder for eval.json, eval.html and a TREC run file of each mode."""


class QualityFloor(Section):
    """A measure that must not be lower."""

    mode: Mode = "dense"
    """How it is searched."""
    measure: Literal["nDCG@10", "R@100", "RR@10", "AP"] = "nDCG@10"
    """RR@10 is MRR@10, AP is MAP, of the judged queries that `evaluate` names."""
    least: Share
    """Mean over the queries."""


class GateConfig(Section):
    """What a new generation must be like to be published; one that is not is committed, but not
    live: the exit code is 3, and it may be published by hand.
    """

    max_deleted: Share = 0.3
    """Re-indexing may delete so large a share of the live documents."""
    max_changed: Share = 0.8
    """Of so large a share of the live documents re-indexing may embed a passage anew; documents
    that are new, or whose metadata only changed, do not count."""
    min_documents: Annotated[int, Field(ge=0)] = 10
    """Of an index with fewer live documents shares are not looked at."""
    vectors: bool = True
    """Look at a sample of the new dense vectors: finite, of unit length where they must be, and not
    all alike."""
    max_alike: Share = 0.999999
    """Mean cosine of the sampled vectors of different passages; above, the model has collapsed.
    Real models stay below 0.9, models with random weights do not."""
    canaries: str | None = None
    """A JSONL file of queries that must find what they should: lines of {"query": "...", "doc_id":
    "..."}; several such documents as a list."""
    canary_top: Count = 10
    """One of a query's documents must be among so many; all live vectors are compared."""
    quality: tuple[QualityFloor, ...] = ()
    """Means that the judged queries of `evaluate` must reach, as in [{mode: dense, measure:
    nDCG@10, least: 0.6}]; measures: nDCG@10, R@100, RR@10, AP. They are searched on the command's
    machine, or on the cluster that ray.address names."""


class ServedIndex(Section):
    """The index whose space the endpoint's vectors must live in."""

    uri: str
    """A local path, s3://, gs://, az:// or abfs://."""
    storage_options: dict[str, Any] = {}
    """Passed to fsspec (keys, endpoint)."""
    generation: Count | None = None
    """This generation; when not given, the one that is live when the endpoint is deployed."""


def absolute_uri(path: str) -> str:
    """A local path from the root on; a URI as it is."""
    return path if "://" in path else str(Path(path).expanduser().absolute())
