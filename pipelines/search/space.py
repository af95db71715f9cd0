"""That vectors and an index share one space: what differs is named, before anything is compared."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.config import OUTPUTS, ModelConfig, Output
from actors.errors import IndexStateError
from actors.fingerprint import fingerprint, space_parts
from actors.models.files import resolve_model
from pipelines.config.loading import parse_config
from pipelines.config.run import RunConfig
from pipelines.config.sections import ChunkConfig, ServedIndex
from pipelines.index.generations import check_vectors, live_generation, read_manifest
from pipelines.index.reader import Index, open_index
from pipelines.index.records import Manifest
from pipelines.plan.plan import load_plan
from pipelines.plan.request import differences
from pipelines.store.store import open_store

logger = logging.getLogger(__name__)

_SHOWN = 5


@dataclass(frozen=True)
class IndexSpace:
    """What an index says of its vectors."""

    uri: str
    manifest: Manifest
    run: RunConfig
    """Of the run that made it; without secrets."""
    parts: Mapping[str, Any]
    """What its space fingerprint is the hash of."""


def read_space(
    uri: str, storage_options: Mapping[str, Any] | None = None, generation: int | None = None
) -> IndexSpace:
    """The live generation's, or one by its number.

    Raises:
        IndexStateError: nothing is committed there, or scores. StorageError: it cannot be read.
    """
    store = open_store(uri, storage_options)
    if generation is None:
        generation = live_generation(store)
    if generation is None:
        raise IndexStateError(
            f"index.uri: expected a committed index at {uri}, found none.",
            "Run python -m pipelines.embed_corpus first, or leave index out.",
        )
    manifest = read_manifest(store, generation)
    check_vectors(manifest, uri)
    plan = load_plan(store, manifest.run_id)
    if plan is None:
        raise IndexStateError(
            f"index.uri: expected the plan of run {manifest.run_id} in {uri}, found none."
        )
    run = parse_config(plan.config, where=f"{uri}, run {manifest.run_id}")
    return IndexSpace(uri=uri, manifest=manifest, run=run, parts=plan.request["model"])


def check_same_space(space: IndexSpace, model: ModelConfig, dtype: str | None = None) -> None:
    """Compare what a model computes with what is in the index.

    `dtype` is what it computes in, where that is known; another one than the index's is warned of.

    Raises:
        IndexStateError: their vectors may not be compared; it names what differs.
    """
    parts = space_parts(model, resolve_model(model))
    ours, theirs = fingerprint(parts), space.manifest.space_fingerprint
    if ours != theirs:
        names = [f"model.{name}" for name in differences(parts, space.parts)]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise IndexStateError(
            f"index {space.uri}: expected the space of its vectors ({theirs}, "
            f"{space.manifest.model.name}), found {ours} ({model.name}); they differ in "
            f"{', '.join(names[:_SHOWN])}{more}.",
            "Use the index's own model, which the endpoint does when model is left out; if this is "
            "it, its files have changed since.",
        )
    dtypes = space.manifest.model.dtypes
    if dtype and dtype not in dtypes:
        logger.warning(
            "index %s was computed in %s, queries are in %s: vectors differ a little.",
            space.uri,
            ", ".join(dtypes),
            dtype,
        )


def space_of(index: ServedIndex) -> IndexSpace:
    """What the served index says of its vectors. Raises as `read_space`."""
    return read_space(index.uri, index.storage_options, index.generation)


def model_to_load(
    model: ModelConfig | None,
    outputs: tuple[Output, ...] | None,
    chunk: ChunkConfig | None,
    index: ServedIndex | None,
) -> tuple[ModelConfig, ChunkConfig | None]:
    """The model with its outputs, and the chunker, which puts titles; the index's where None.

    Raises:
        IndexStateError: as `read_space`.
    """
    if index and (model is None or chunk is None):
        run = space_of(index).run
        chunk = chunk or run.chunk
        if model is None:
            model, outputs = run.model, outputs or run.outputs
    assert model is not None  # callers give a model or an index
    return dataclasses.replace(model, outputs=outputs or model.outputs), chunk


def searched_index(
    wanted: ServedIndex, given: Sequence[Output]
) -> tuple[Index, tuple[Output, ...]]:
    """The index to search, and those of its outputs for which queries have vectors (`given`).

    Raises:
        IndexStateError: no index, or it has vectors of none of these outputs.
    """
    index = open_index(wanted.uri, wanted.storage_options, generation=wanted.generation)
    outputs = tuple(o for o in OUTPUTS if o in given and o in index.info.outputs)
    if not outputs:
        raise IndexStateError(
            f"outputs: expected some of {', '.join(index.info.outputs)}, of which {wanted.uri} has "
            f"vectors, got {', '.join(given)}."
        )
    return index, outputs
