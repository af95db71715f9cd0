"""Finds, reads, commits and publishes generations.

A generation exists if its manifest exists; the publication with the highest number names the live
one. Directory listings are used to find manifests and publications, never to find data.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from itertools import islice, takewhile

import pyarrow as pa
from pydantic import BaseModel, ValidationError

from actors.encoded import SCORE
from actors.errors import GateError, IndexStateError
from pipelines.index.layout import manifest_path, publication_path, table_path
from pipelines.index.parts import write_table
from pipelines.index.records import FORMAT_VERSION, FileRecord, Manifest, TableRecord, Tables
from pipelines.index.schemas import FILES_SCHEMA
from pipelines.store.store import Store

_SHOWN = 10


class Publication(BaseModel):
    """The record that makes a generation live; publishing an older one is a rollback."""

    generation: int


def read_manifest(store: Store, generation: int) -> Manifest:
    """Read the manifest of a generation.

    Raises:
        IndexStateError: it does not exist or cannot be read, or it has another format version.
    """
    path = manifest_path(generation)
    try:
        raw = json.loads(store.read(path))
    except FileNotFoundError:
        raise IndexStateError(
            f"{store.url(path)}: expected generation {generation}, found none: it was removed, or "
            f"never committed; existing generations: {_those_there_are(store)}."
        ) from None
    except ValueError as error:
        raise IndexStateError(f"{store.url(path)}: expected JSON, found: {error}.") from None
    found = raw.get("format_version") if isinstance(raw, dict) else None
    if found != FORMAT_VERSION:
        raise IndexStateError(
            f"{store.url(path)}: expected format_version {FORMAT_VERSION}, found {found}.",
            "Upgrade packvec.",
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        reason = " ".join(str(error).split())
        raise IndexStateError(
            f"{store.url(path)}: expected a manifest, found an invalid file ({reason:.200})."
        ) from None


def read_chain(store: Store, generation: int) -> list[Manifest]:
    """Read the manifests of a generation and its ancestors, the newest first."""
    chain = [read_manifest(store, generation)]
    while (parent := chain[-1].parent) is not None:
        chain.append(read_manifest(store, parent))
    return chain


def highest_generation(store: Store) -> int:
    """Return the number of the newest committed generation, 0 if there is none."""
    return next(_committed(store), 0)


def committed_generations(store: Store) -> list[int]:
    """Return the numbers of all existing generations, ascending."""
    return sorted(_committed(store))


def _committed(store: Store) -> Iterator[int]:
    """Yield the numbers of all existing generations, the newest first."""
    names = (path.rsplit("/", 1)[-1] for path in store.list_folders("generations"))
    numbers = (int(name) for name in names if name.isdecimal())
    for number in sorted(numbers, reverse=True):
        if store.exists(manifest_path(number)):  # a crash before the commit leaves tables only
            yield number


def _those_there_are(store: Store) -> str:
    newest = [str(number) for number in islice(_committed(store), _SHOWN + 1)]
    return ", ".join([*["..."] * (len(newest) > _SHOWN), *reversed(newest[:_SHOWN])]) or "none"


def publication_files(store: Store) -> dict[int, str]:
    """Return publication number -> path."""
    fields = ((path, publication_path.match(path)) for path in store.list("publications"))
    return {int(found["number"]): path for path, found in fields if found}


def publications(store: Store) -> dict[int, int]:
    """Return publication number -> generation.

    Raises:
        IndexStateError: one of the files is not a publication.
    """
    paths = publication_files(store)
    contents = store.read_many(paths.values())
    found = {}
    for (number, path), content in zip(paths.items(), contents, strict=True):
        try:
            found[number] = Publication.model_validate_json(content).generation
        except ValidationError as error:
            raise IndexStateError(
                f"{store.url(path)}: expected a publication, found an invalid file "
                f"({error.errors()[0]['msg']})."
            ) from None
    return found


def live_of(published: Mapping[int, int]) -> int | None:
    """Return the generation that the highest publication names, None if there is none."""
    return published[max(published)] if published else None


def live_generation(store: Store) -> int | None:
    """Return the live generation, None before the first publication."""
    return live_of(publications(store))


def refuse_folder_of_others(store: Store) -> None:
    """Refuse to start an index in a folder that contains folders and is no index.

    Raises:
        IndexStateError: naming the folders found, as of `out` where indexes are `out/<name>`.
    """
    found = [path.rpartition("/")[2] for path in store.list_folders("")]
    if found and not {"runs", "generations", "leases"}.intersection(found):
        raise IndexStateError(
            f"{store.uri}: expected an index or an empty folder, found other folders in it: "
            f"{', '.join(found[:3])}{', ...' * (len(found) > 3)}.",
            f"Set index.uri to a folder of its own, such as {store.uri.rstrip('/')}/index.",
        )


def require_live(store: Store) -> int:
    """Return the live generation.

    Raises:
        IndexStateError: nothing has been published yet.
    """
    live = live_generation(store)
    if live is None:
        raise nothing_committed(store)
    return live


def nothing_committed(store: Store) -> IndexStateError:
    """Return the error for a store without a committed index."""
    return IndexStateError(
        f"{store.uri}: expected a committed index, found none.",
        "Run python -m pipelines.embed_corpus first; an interrupted run commits at its end.",
    )


def committed_by(store: Store, run_id: str, after: int = 0) -> Manifest | None:
    """Return the generation above `after` that a run has committed, published or not."""
    newer = takewhile(lambda number: number > after, _committed(store))
    manifests = (read_manifest(store, number) for number in newer)
    return next((manifest for manifest in manifests if manifest.run_id == run_id), None)


def publish(store: Store, generation: int, over: int | None = None) -> None:
    """Make a generation live; with `over`, only if generation `over` is live now.

    Raises:
        GateError: `over` is not live. IndexStateError: another writer published at the same time.
    """
    published = publications(store)
    live = live_of(published)
    if over is not None and live != over:
        raise GateError(
            f"{store.uri}: generation {live} was published while generation {generation}, which "
            f"adds to {over}, was being made.",
            "The new generation is committed, but not live. Run again, or publish it: "
            f"python -m pipelines.publish_generation {store.uri} {generation}",
        )
    publish_next(store, generation, published)


def publish_next(store: Store, generation: int, published: Mapping[int, int]) -> None:
    """Make a generation live if the publications are still `published`.

    Raises:
        IndexStateError: another writer has published meanwhile.
    """
    content = Publication(generation=generation).model_dump_json().encode()
    if not store.create_exclusive(publication_path(max(published, default=0) + 1), content):
        raise IndexStateError(
            f"{store.uri}: another writer published at the same time; generation "
            f"{live_generation(store)} is live.",
            "Run again.",
        )


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
    """Write the tables of a generation; `nonce` makes their file names unique."""

    def put(name: str, table: pa.Table) -> TableRecord:
        path = table_path(number, name, nonce)
        return TableRecord(path=path, sha256=write_table(store, table, path).sha256)

    return Tables(
        parts=put("parts", _files_table(parts)),
        documents=put("documents", _files_table(documents)),
        rejects=put("rejects", _files_table(rejects)),
        deletions=put("deletions", deletions),
        unchanged=put("unchanged", _files_table(unchanged)) if unchanged else None,
    )


def create_manifest(store: Store, manifest: Manifest) -> Manifest:
    """Commit a generation: create its manifest exclusively. Returns the manifest that now exists.

    Raises:
        IndexStateError: another run has committed a generation with this number.
    """
    path = manifest_path(manifest.generation)
    if store.create_exclusive(path, manifest.to_bytes()):
        return manifest
    winner = read_manifest(store, manifest.generation)
    if winner.run_id != manifest.run_id:
        raise IndexStateError(
            f"{store.url(path)}: run {winner.run_id} committed this generation first.",
            "That generation was not changed; run again to see what differs.",
        )
    return winner


def software_versions() -> dict[str, str]:
    """Return the versions of Python and the main packages, for a manifest."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def _files_table(files: Sequence[FileRecord]) -> pa.Table:
    return pa.Table.from_pylist([file.model_dump() for file in files], FILES_SCHEMA)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a working directory, not installed
        return "unknown"


def check_vectors(manifest: Manifest, uri: str) -> None:
    """Check that a generation holds vectors, which can be searched.

    Raises:
        IndexStateError: the generation holds scores of pairs.
    """
    if SCORE in manifest.outputs:
        raise IndexStateError(
            f"{uri}: expected an index of vectors, found scores of pairs.",
            "Read the scores with open_index(uri); they cannot be searched or re-indexed.",
        )
