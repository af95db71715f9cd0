"""The sections of configuration files, each with its keys.

Users read the docstrings of sections and fields as documentation: run `make docs` after a change.
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
"""Names of computed output columns, which a metadata column cannot have."""


class Section(BaseModel):
    """A section of a configuration. It is frozen, so that it stays valid after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Columns(Section):
    """Names of the source columns. A dotted path names a field inside a struct or JSON object."""

    id: str | None = "id"
    """Column of the unique id of a document (string or integer). null: the id is the name of the
    file and the position in it, so re-indexing treats a document that has moved as a new one."""
    text: str = "text"
    """Column of the text to embed."""
    title: str | None = None
    """Column of the title, which is stored with each passage; no titles when not given."""
    metadata: tuple[str, ...] = ()
    """Columns to copy into every output row."""

    @field_validator("metadata")
    @classmethod
    def _check_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name in OUTPUT_COLUMNS or names.count(name) > 1:
                raise ValueError(f"different names that no output column has, not {name!r}")
        return names

    @property
    def copied(self) -> tuple[str, ...]:
        """The columns that are copied into the output rows."""
        return (*self.copied_strings, *self.metadata)

    @property
    def copied_strings(self) -> tuple[str, ...]:
        """The copied columns that must hold strings."""
        return ()

    @property
    def by_key(self) -> dict[str, str | None]:
        """The columns by the configuration keys that name them."""
        named = {f"metadata[{i}]": name for i, name in enumerate(self.metadata)}
        return {**self.strings, **named}

    @property
    def strings(self) -> dict[str, str | None]:
        """The columns that must hold strings (an id: or integers), by key."""
        return {"id": self.id, "text": self.text, "title": self.title}


class CsvConfig(Section):
    """The syntax of CSV and TSV files."""

    delimiter: Character | None = None
    """Character between fields; when not given: a comma, in TSV files a tab."""
    quote: Character | None = '"'
    """Character around fields that contain a delimiter or a line end; null: no quoting."""


class SourceConfig(Section):
    """The documents: local files, or files that fsspec can read (s3://, gs://, az://, https://)."""

    uri: str | tuple[str, ...]
    """A file, a folder (all files below it that have the format), a glob, or a list of them."""
    format: Literal[
        "auto", "parquet", "jsonl", "beir", "csv", "tsv", "text", "lines", "wikiextractor"
    ] = "auto"
    """Format of the files. "auto": detected from the extension, else from the first bytes; "beir":
    the corpus.jsonl of a folder; "text": one document per file; "lines": one document per line. All
    formats except Parquet may be compressed (.gz, .zst, .bz2)."""
    columns: Columns = Columns()
    csv: CsvConfig = CsvConfig()
    limit: Count | None = None
    """Read only the first N documents, in the order of the plan."""
    storage_options: dict[str, Any] = {}
    """Options for fsspec, such as keys and endpoint; never stored with the index."""

    @field_validator("uri", mode="before")
    @classmethod
    def _check_uri(cls, uri: Any) -> Any:
        several = isinstance(uri, list | tuple) and all(isinstance(each, str) for each in uri)
        if not uri or not (isinstance(uri, str) or several):
            raise ValueError("a string or a list of strings")
        return uri

    @property
    def uris(self) -> tuple[str, ...]:
        """The `uri` key as a tuple."""
        return (self.uri,) if isinstance(self.uri, str) else self.uri

    @property
    def described(self) -> str:
        """The `uri` key in the form that messages show."""
        first, *more = self.uris
        return f"{first} and {len(more)} more" if more else first


class IndexConfig(Section):
    """The place and the storage format of the index."""

    uri: str
    """Folder to write: a local path, s3://, gs://, az:// or abfs://."""
    store_text: bool = True
    """Store the text of each passage in the index."""
    colbert_storage: Literal["values", "bytes"] = "values"
    """Storage of ColBERT vectors. "values": every Parquet reader can read them; "bytes": raw
    float16, many times faster to write."""
    storage_options: dict[str, Any] = {}
    """Options for fsspec, such as keys and endpoint; never stored with the index."""


class ChunkConfig(Section):
    """The cutting of documents into passages."""

    by: Literal["none", "tokens"] = "tokens"
    """"tokens": passages of at most `max_tokens`, cut at headings, paragraphs, sentences, words;
    "none": each document is one passage, truncated at the model's max_length."""
    max_tokens: Count | None = None
    """Longest passage in tokens, special tokens included; the model's max_length when not given."""
    overlap: Annotated[int, Field(ge=0)] = 0
    """Largest number of tokens that a passage repeats from the end of the previous passage."""
    title_prefix: bool = False
    """Encode every passage with the document's title and a newline before it. They count in
    max_tokens and are not stored in `text`. A title longer than half of max_tokens is cut, and its
    passages are marked as `truncated`."""
    markup: Literal["auto", "plain", "markdown"] = "auto"
    """Headings at which passages are cut. "auto": Markdown headings of the form `# Title`;
    "markdown": underlined headings too; "plain": no headings."""


class SliceConfig(Section):
    """The size of a slice, the unit of work, retry and resume. The first limit reached ends it."""

    documents: Count = 1000
    """Largest number of documents in a slice. A slice never spans two row groups of the source."""
    max_tokens: Count | None = None
    """Number of tokens that ends a slice, with the document that reaches it. When not given:
    131,072 with ColBERT (256 MB at 1,024 dimensions), 1,048,576 without."""


class RayConfig(Section):
    """The cluster and the parallelism of the run. These keys do not change the result."""

    engine: Literal["ray", "in_process"] = "ray"
    """"in_process": read and encode in this process, one slice after the other, without starting
    Ray; for small corpora. The index is the same; the other keys of this section are not used."""
    address: str | None = None
    """Address of an existing cluster; RAY_ADDRESS when not given, else a local one is started."""
    actors: Count | None = None
    """Number of encoder actors. When not given: one per GPU, or one per machine without GPUs."""
    min_actors: Count | None = None
    """Number of actors that must fit before the run starts, instead of `actors`; default: 1."""
    max_actors: Count | None = None
    """Number of actors up to which the run grows, instead of `actors`. When not given: as many as
    fit when the run starts."""
    gpus_per_actor: Annotated[float, Field(ge=0)] | None = None
    """GPUs of each actor, also a fraction. When not given: 1 if the cluster has GPUs, else 0."""
    cpus_per_actor: Count | None = None
    """CPUs of each actor; without a GPU also its number of compute threads. When not given: 1 if it
    has a GPU, else three quarters of the cores of its machine."""
    slices_per_actor: Count = 2
    """Slices that an actor holds at once: it encodes one while it writes the others."""
    stuck_minutes: Annotated[float, Field(gt=0)] = 60.0
    """Minutes without progress after which a run stops with an error; more than a slice takes."""

    @model_validator(mode="after")
    def _check_actors(self) -> RayConfig:
        least, most = self.min_actors or 1, self.max_actors
        if self.actors and (self.min_actors or most):
            raise ValueError("actors: expected either actors or min_actors/max_actors, got both")
        if most and most < least:
            raise ValueError(f"max_actors: expected at least min_actors ({least}), got {most}")
        return self


class SearchConfig(Section):
    """Search by search_index, evaluate_index and the endpoint. These keys do not change the content
    of the index.
    """

    weights: tuple[Weight, Weight, Weight] = (1.0, 1.0, 1.0)
    """Weights of dense, sparse and ColBERT scores in the mean that hybrid ranks by, over the
    outputs of the index. FlagEmbedding's default; its documentation uses [0.4, 0.2, 0.4]."""
    rrf_k: Count = 60
    """Constant of reciprocal rank fusion, which adds 1 / (rrf_k + rank) over the outputs."""
    rrf_depth: Count = 1000
    """Top results of each output (passages or documents) that rrf combines; it finds no others."""
    candidates: Count | None = None
    """Number N: colbert, hybrid and rrf score only the best N passages of dense and the best N of
    sparse; every passage when not given."""
    shards: Count | None = None
    """Number of search actors that share the passages; one per machine when not given."""
    gpus_per_shard: Annotated[float, Field(ge=0)] = 0
    """GPUs of a search actor, also a fraction. If not 0, they hold and score dense and ColBERT
    vectors."""
    cpus_per_shard: Count | None = None
    """CPUs of a search actor, and its number of threads; half of those of its machine when not
    given."""
    max_memory_bytes: Count | None = None
    """Memory limit of a search on each machine (else it is refused); by default its free memory."""
    folder: str | None = None
    """Folder on each machine for memory-mapped copies of the vectors; packvec/search in the user's
    cache folder when not given."""

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if not sum(weights):
            raise ValueError("a weight other than 0")
        return weights


class EvaluateConfig(Section):
    """Judged queries, and their evaluation by evaluate_index."""

    queries: str | None = None
    """File of queries: JSON lines with `_id` and `text`. When not given and source.format is beir:
    the queries of the dataset."""
    qrels: str | None = None
    """File of judgements: query-id, corpus-id and score separated by tabs, with or without a header
    (BEIR), or the four columns of TREC. When not given and source.format is beir: the judgements
    of the dataset."""
    split: str = "test"
    """Name of the file in the qrels/ folder of a BEIR dataset."""
    modes: Annotated[tuple[Mode, ...], Field(min_length=1)] | None = None
    """Search modes to evaluate; when not given, all that the outputs of the index allow."""
    depth: Annotated[int, Field(ge=100)] = 1000
    """Number of documents retrieved for each query; R@100 needs at least 100."""
    bm25: Literal["words", "tokens"] | None = "words"
    """BM25 baseline over words, or over the model's tokens for languages without spaces; null: no
    baseline. It needs the texts in the index."""
    ignore_identical_ids: bool = False
    """Drop a result whose id is the id of its query, as BEIR does for ArguAna and Quora."""
    out: str = "out/evaluation"
    """Folder for eval.json, eval.html and one TREC run file for each mode."""


class QualityFloor(Section):
    """A minimum for the mean of a measure over the judged queries of `evaluate`."""

    mode: Mode = "dense"
    """Search mode that is measured."""
    measure: Literal["nDCG@10", "R@100", "RR@10", "AP"] = "nDCG@10"
    """Name of the measure. The mean of RR@10 is also called MRR@10, and that of AP is MAP."""
    least: Share
    """Smallest mean that passes the gate."""


class GateConfig(Section):
    """The checks before a new generation is published. A generation that fails them is committed
    but not live, and the exit code is 3; `publish` can still make it live.
    """

    max_deleted: Share = 0.3
    """Largest share of the live documents that re-indexing may delete."""
    max_changed: Share = 0.8
    """Largest share of the live documents of which re-indexing may encode a passage again. New
    documents, and documents of which only metadata changed, do not count."""
    min_documents: Annotated[int, Field(ge=0)] = 10
    """Number of live documents below which the two shares are not checked."""
    vectors: bool = True
    """Check a sample of the new dense vectors: they must be finite, have unit length if they are
    normalised, and differ from each other."""
    max_alike: Share = 0.999999
    """Largest mean cosine between sampled vectors of different passages; a model above it has
    collapsed. Trained models stay below 0.9; models with random weights may not."""
    canaries: str | None = None
    """JSONL file of queries with known answers: lines of {"query": "...", "doc_id": "..."}, where
    doc_id may be a list of documents."""
    canary_top: Count = 10
    """Number of top results, among all live vectors, that must contain a document of the query."""
    quality: tuple[QualityFloor, ...] = ()
    """Minimum means over the judged queries of `evaluate`, as in [{mode: dense, measure: nDCG@10,
    least: 0.6}]; measures: nDCG@10, R@100, RR@10, AP. The search runs on the machine of the
    command, or on the cluster that ray.address names."""


class ServedIndex(Section):
    """The index that the endpoint serves; both must have the same space fingerprint."""

    uri: str
    """Folder of the index: a local path, s3://, gs://, az:// or abfs://."""
    storage_options: dict[str, Any] = {}
    """Options for fsspec, such as keys and endpoint."""
    generation: Count | None = None
    """Generation to serve; when not given, the one that is live when the endpoint is deployed."""


def absolute_uri(path: str) -> str:
    """Return the absolute form of a local path, and a URI unchanged."""
    return path if "://" in path else str(Path(path).expanduser().absolute())
