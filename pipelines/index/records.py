"""The JSON records of an index on storage. Where they lie: layout.py; tables: schemas.py."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FORMAT_VERSION = 1


class JsonRecord(BaseModel):
    """A JSON record; keys it does not know are ignored, so that later versions may add some."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    def to_bytes(self) -> bytes:
        """Readable JSON."""
        return self.model_dump_json(indent=1).encode()


class FileRecord(JsonRecord):
    """One file of an index."""

    path: str
    rows: int
    bytes: int
    sha256: str


class MaskedRows(JsonRecord):
    """Rows of a part that readers must skip."""

    doc_id: str
    part: str
    first_row: int
    n_rows: int


class EncoderRecord(JsonRecord):
    """What encoded a slice."""

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
    """When a slice was done, and where its time went; slices that an actor has at once overlap."""

    began: float
    """Unix seconds."""
    ended: float
    encode: float
    """Seconds in which it had the encoder: one slice of an actor at a time."""
    write: float
    """Seconds of putting rows together and writing them to a local file."""
    upload: float
    """Seconds of bringing that file to the index."""


class Done(JsonRecord):
    """The commit of one slice."""

    run_id: str
    nonce: str
    unit: int
    first_document: int
    documents: int
    """Input rows of the slice, rejects included."""
    last: bool
    """It ends its unit."""
    unreadable: bool = False
    """The unit could not be read from here on: tried again on every start, never in the way of a
    slice that could."""
    embedded: int
    """Documents with rows in `part`."""
    passages: int
    tokens: int
    truncated: int
    reused: int = 0
    """Passages whose vectors come from the index, or from an equal passage of the slice."""
    reused_tokens: int = 0
    """Of these passages."""
    unchanged: int = 0
    """Documents that are in the index as they are."""
    edited: int = 0
    """Documents that the index had otherwise, and of which a passage was encoded."""
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
        """Where the unit's next slice begins."""
        return self.first_document + self.documents

    @property
    def encoded_tokens(self) -> int:
        """Those that went through the model."""
        return self.tokens - self.reused_tokens

    @property
    def files(self) -> list[FileRecord]:
        """What it wrote."""
        files = (self.part, self.ledger, self.reject_file, self.unchanged_file)
        return [file for file in files if file]


RunKind = Literal["embed", "reindex", "compact"]


class Plan(JsonRecord):
    """What a run reads and what it was asked: pinned when it starts."""

    format_version: int = FORMAT_VERSION
    run_id: str
    kind: RunKind = "embed"
    parent: int | None
    request: dict[str, Any]
    listing: str
    """Hash of the source's files (path, size, etag), also of those beyond a limit."""
    units: int
    documents: int | None
    """None where only reading tells."""
    config: dict[str, Any]
    created: str


class TableRecord(JsonRecord):
    """A table of a generation."""

    path: str
    sha256: str


class ModelRecord(JsonRecord):
    """The model of a generation."""

    name: str
    revision: str | None
    dim: int
    """Of dense vectors; of a reranker: scores of a pair."""
    colbert_dim: int | None
    max_length: int
    pooling: str
    dtypes: list[str]
    """Compute types that were used."""


class Counts(JsonRecord):
    """What a generation holds and did, after masking."""

    documents: int
    """Documents in this generation's own parts; earlier ones are counted in `unchanged`."""
    passages: int
    tokens: int
    truncated: int
    encoded: int
    """Passages that the model computed, masked ones included."""
    reused: int = 0
    """Passages whose vectors come from the index, or from an equal passage of the same slice."""
    unchanged: int = 0
    """Documents of earlier generations that stay live."""
    deleted: int = 0
    """Documents of earlier generations that are gone from the corpus."""
    replaced: int = 0
    """Documents of earlier generations that have newer rows in this one."""
    edited: int = 0
    """Replaced documents of which a passage was encoded."""
    rejects: dict[str, int]
    """Code -> rejects of the whole view, those of earlier generations that still hold included."""

    @property
    def live_documents(self) -> int:
        """Documents of the whole view."""
        return self.documents + self.unchanged


class Tables(JsonRecord):
    """The tables of a generation."""

    parts: TableRecord
    documents: TableRecord
    rejects: TableRecord
    deletions: TableRecord
    unchanged: TableRecord | None = None
    """Files of UNCHANGED_SCHEMA; none where nothing was compared."""

    def records(self) -> list[TableRecord]:
        """All that there are."""
        return [table for _, table in self if table is not None]


class Manifest(JsonRecord):
    """A committed generation; its existence is the commit of a run."""

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
    """The generation whose live view this one holds, rewritten; it has no parent then."""
    counts: Counts
    started: str
    ended: str
    versions: dict[str, str]
    tables: Tables
