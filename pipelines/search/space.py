"""Check, before a search, that the vectors of a model and of an index share one space."""

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
    """The description of the vector space of an index."""

    uri: str
    manifest: Manifest
    run: RunConfig
    """The configuration of the run that wrote the generation, without secrets."""
    parts: Mapping[str, Any]
    """The values whose hash is the space fingerprint."""


def read_space(
    uri: str, storage_options: Mapping[str, Any] | None = None, generation: int | None = None
) -> IndexSpace:
    """Read the space of a generation, by default of the live one.

    Raises:
        IndexStateError: no generation, or the index holds scores. StorageError: it is unreadable.
    """
    store = open_store(uri, storage_options)
    if generation is None:
        generation = live_generation(store)
    if generation is None:
        raise IndexStateError(
            f"index.uri: expected a committed index at {uri}, found none.",
            "Run python -m pipelines.embed_corpus first, or remove index from the configuration.",
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
    """Check that vectors of `model` may be compared with those of the index.

    `dtype`: the dtype the model computes in, if known. Logs a warning if the index has another.

    Raises:
        IndexStateError: the spaces differ; the message names the settings.
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
            "Use the model of the index (an endpoint does by default). If it is the same model, "
            "its files have changed since.",
        )
    dtypes = space.manifest.model.dtypes
    if dtype and dtype not in dtypes:
        logger.warning(
            "index %s was computed in %s, queries are in %s: the vectors will differ slightly.",
            space.uri,
            ", ".join(dtypes),
            dtype,
        )


def space_of(index: ServedIndex) -> IndexSpace:
    """Read the space of the served index. Raises as `read_space`."""
    return read_space(index.uri, index.storage_options, index.generation)


def model_to_load(
    model: ModelConfig | None,
    outputs: tuple[Output, ...] | None,
    chunk: ChunkConfig | None,
    index: ServedIndex | None,
) -> tuple[ModelConfig, ChunkConfig | None]:
    """Return the model with its outputs, and the chunker. None defaults to that of the index.

    Raises:
        IndexStateError: as `read_space`.
    """
    if index and (model is None or chunk is None):
        run = space_of(index).run
        chunk = chunk or run.chunk
        if model is None:
            model, outputs = run.model, outputs or run.outputs
    assert model is not None  # callers pass a model or an index
    return dataclasses.replace(model, outputs=outputs or model.outputs), chunk


def searched_index(
    wanted: ServedIndex, given: Sequence[Output]
) -> tuple[Index, tuple[Output, ...]]:
    """Return the index, and those of its outputs that are also in `given`, the queries' outputs.

    Raises:
        IndexStateError: no index, or it has none of these outputs.
    """
    index = open_index(wanted.uri, wanted.storage_options, generation=wanted.generation)
    outputs = tuple(o for o in OUTPUTS if o in given and o in index.info.outputs)
    if not outputs:
        raise IndexStateError(
            f"outputs: expected some of {', '.join(index.info.outputs)}, the vectors in "
            f"{wanted.uri}, got {', '.join(given)}."
        )
    return index, outputs
