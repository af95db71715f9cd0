"""Writing a generation: its tables, and the manifest that makes them one."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata

import pyarrow as pa

from actors.errors import IndexStateError
from pipelines.generations import read_manifest
from pipelines.layout import generation_path, manifest_path
from pipelines.output import write_table
from pipelines.records import FileRecord, Manifest, TableRecord, Tables
from pipelines.schemas import FILES_SCHEMA
from pipelines.storage import Store

_PACKAGES = ("packvec", "ray", "torch", "transformers", "tokenizers", "pyarrow")


def write_tables(
    store: Store,
    number: int,
    nonce: str,
    *,
    parts: Sequence[FileRecord],
    documents: Sequence[FileRecord],
    rejects: Sequence[FileRecord],
    deletions: pa.Table,
    unchanged: Sequence[FileRecord] = (),
) -> Tables:
    """The tables of a generation, under names that are `nonce`'s own."""

    def put(name: str, table: pa.Table) -> TableRecord:
        path = generation_path(number, f"{name}-{nonce}.parquet")
        return TableRecord(path=path, sha256=write_table(store, table, path).sha256)

    return Tables(
        parts=put("parts", _files_table(parts)),
        documents=put("documents", _files_table(documents)),
        rejects=put("rejects", _files_table(rejects)),
        deletions=put("deletions", deletions),
        unchanged=put("unchanged", _files_table(unchanged)) if unchanged else None,
    )


def create_manifest(store: Store, manifest: Manifest) -> Manifest:
    """Commit a generation: create its manifest, exclusively. Returns the one that is there now.

    Raises:
        IndexStateError: another run has committed a generation of this number.
    """
    path = manifest_path(manifest.generation)
    if store.create_exclusive(path, manifest.to_bytes()):
        return manifest
    winner = read_manifest(store, manifest.generation)
    if winner.run_id != manifest.run_id:
        raise IndexStateError(
            f"{store.url(path)}: run {winner.run_id} committed while this one did.",
            "Nothing of it was changed; run again to see what differs.",
        )
    return winner


def software_versions() -> dict[str, str]:
    """Of what writes, for a manifest."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def _files_table(files: Sequence[FileRecord]) -> pa.Table:
    return pa.Table.from_pylist([file.model_dump() for file in files], FILES_SCHEMA)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a working directory, not installed
        return "unknown"
