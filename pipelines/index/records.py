"""Defines the JSON records of an index. Their paths: layout.py; the tables: schemas.py."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FORMAT_VERSION = 1


class JsonRecord(BaseModel):
    """A JSON record; unknown keys are ignored, so that later versions may add keys."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    def to_bytes(self) -> bytes:
        """Return indented JSON."""
        return self.model_dump_json(indent=1).encode()


class FileRecord(JsonRecord):
    """One file of an index."""

    path: str
    rows: int
    bytes: int
    sha256: str


class MaskedRows(JsonRecord):
    """A deletion: rows of a part that readers must skip."""

    doc_id: str
    part: str
    first_row: int
    n_rows: int


class EncoderRecord(JsonRecord):
    """The encoder that encoded a slice."""

    space_fingerprint: str
    dim: int
    colbert_dim: int | None
    max_length: int
    pooling: str
    dtype: str
    device: str
    worker: str
    """host:pid of the actor."""


class SliceTimes(JsonRecord):
    """Times of one slice; slices that an actor processes concurrently overlap."""

    began: float
    """Unix time of the start; `ended` is that of the end."""
    ended: float
    encode: float
    """Seconds in which the slice held the encoder, which one slice of an actor holds at a time."""
    write: float
    """Seconds for assembling rows and writing them to a local file."""
    upload: float
    """Seconds for uploading that file."""


class Done(JsonRecord):
    """The done record of one slice."""

    run_id: str
    nonce: str
    unit: int
    first_document: int
    documents: int
    """Input rows of the slice, including rejects."""
    last: bool
    """Whether the slice is the last of its unit."""
    unreadable: bool = False
    """Whether the unit could not be read from `first_document` on. Every start of the run tries
    again; this record does not replace that of a slice that could be read."""
    embedded: int
    """Documents with rows in `part`."""
    passages: int
    tokens: int
    truncated: int
    reused: int = 0
    """Passages whose vectors come from the index, or from an equal passage of the slice."""
    reused_tokens: int = 0
    """Tokens of the reused passages."""
    unchanged: int = 0
    """Documents that are in the index with the same content."""
    edited: int = 0
    """Documents that the index has with other content, and of which a passage was encoded."""
    rejects: dict[str, int]
    masked: list[MaskedRows]
    part: FileRecord | None
    ledger: FileRecord | None
    reject_file: FileRecord | None
    unchanged_file: FileRecord | None = None
    encoder: EncoderRecord
    seconds: float
    times: SliceTimes | None = None

    @property
    def next_document(self) -> int:
        """The number of the first document of the unit's next slice."""
        return self.first_document + self.documents

    @property
    def encoded_tokens(self) -> int:
        """Tokens that the model computed."""
        return self.tokens - self.reused_tokens

    @property
    def files(self) -> list[FileRecord]:
        """The files that the slice wrote."""
        files = (self.part, self.ledger, self.reject_file, self.unchanged_file)
        return [file for file in files if file]


RunKind = Literal["embed", "reindex", "compact"]


class Plan(JsonRecord):
    """The units and the request of a run, stored when the run starts."""

    format_version: int = FORMAT_VERSION
    run_id: str
    kind: RunKind = "embed"
    parent: int | None
    request: dict[str, Any]
    listing: str
    """Hash of the source's files (path, size, etag), including those beyond a limit."""
    units: int
    documents: int | None
    """The number of documents, None if it is known only after reading."""
    config: dict[str, Any]
    created: str


class TableRecord(JsonRecord):
    """A table of a generation, with its checksum."""

    path: str
    sha256: str


class ModelRecord(JsonRecord):
    """The model of a generation."""

    name: str
    revision: str | None
    dim: int
    """Dimension of dense vectors; for a reranker, the number of scores of a pair."""
    colbert_dim: int | None
    max_length: int
    pooling: str
    dtypes: list[str]
    """Compute dtypes that encoders used."""


class Counts(JsonRecord):
    """Numbers of a generation, without the rows that it deletes."""

    documents: int
    """Documents in this generation's own parts; earlier ones are counted in `unchanged`."""
    passages: int
    tokens: int
    truncated: int
    encoded: int
    """Passages that the model computed, including deleted ones."""
    reused: int = 0
    """Passages whose vectors come from the index, or from an equal passage of the same slice."""
    unchanged: int = 0
    """Documents of earlier generations that stay live."""
    deleted: int = 0
    """Documents of earlier generations that are no longer in the corpus."""
    replaced: int = 0
    """Documents of earlier generations that have newer rows in this one."""
    edited: int = 0
    """Replaced documents of which at least one passage was encoded."""
    rejects: dict[str, int]
    """Code -> rejects of the whole view, including those of earlier generations that still hold."""

    @property
    def live_documents(self) -> int:
        """The number of documents of the whole view."""
        return self.documents + self.unchanged


class Tables(JsonRecord):
    """The tables of a generation."""

    parts: TableRecord
    documents: TableRecord
    rejects: TableRecord
    deletions: TableRecord
    unchanged: TableRecord | None = None
    """Files of UNCHANGED_SCHEMA; None if no unchanged document was recorded."""

    def records(self) -> list[TableRecord]:
        """Return all tables that exist."""
        return [table for _, table in self if table is not None]


class Manifest(JsonRecord):
    """A committed generation; creating this record commits the run."""

    format_version: int = FORMAT_VERSION
    generation: int
    parent: int | None
    run_id: str
    space_fingerprint: str
    index_fingerprint: str
    model: ModelRecord
    outputs: list[str]
    vector_dtype: str
    colbert_storage: str
    compacts: int | None = None
    """The generation that this one is a compaction of; `parent` is then None."""
    counts: Counts
    started: str
    ended: str
    versions: dict[str, str]
    tables: Tables
