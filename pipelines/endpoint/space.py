"""That an endpoint and an index share one space: what differs is named, and nothing is served."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actors.config import ModelConfig, Output
from actors.errors import IndexStateError
from actors.fingerprint import fingerprint, space_parts
from actors.model_files import resolve_model
from pipelines.config import parse_config
from pipelines.config_sections import ChunkConfig
from pipelines.endpoint.config import EndpointConfig, ServedIndex
from pipelines.generations import live_generation, read_manifest
from pipelines.plan import differences, load_plan
from pipelines.records import Manifest
from pipelines.storage import open_store

logger = logging.getLogger(__name__)

_SHOWN = 5


@dataclass(frozen=True)
class IndexSpace:
    """What an index says of its vectors."""

    uri: str
    manifest: Manifest
    model: ModelConfig
    """Of the run that made it."""
    outputs: tuple[Output, ...]
    chunk: ChunkConfig
    parts: Mapping[str, Any]
    """What its space fingerprint is the hash of."""


def read_space(index: ServedIndex) -> IndexSpace:
    """The live generation's.

    Raises:
        IndexStateError: nothing is committed there. StorageError: it cannot be read.
    """
    store = open_store(index.uri, index.storage_options)
    generation = live_generation(store)
    if generation is None:
        raise IndexStateError(
            f"index.uri: expected a committed index at {index.uri}, found none.",
            "Run python -m pipelines.embed_corpus first, or leave index out.",
        )
    manifest = read_manifest(store, generation)
    plan = load_plan(store, manifest.run_id)
    if plan is None:
        raise IndexStateError(
            f"index.uri: expected the plan of run {manifest.run_id} in {index.uri}, found none."
        )
    run = parse_config(plan.config, where=f"{index.uri}, run {manifest.run_id}")
    return IndexSpace(
        uri=index.uri,
        manifest=manifest,
        model=run.model,
        outputs=run.outputs,
        chunk=run.chunk,
        parts=plan.request["model"],
    )


def model_to_load(config: EndpointConfig) -> tuple[ModelConfig, ChunkConfig | None]:
    """The model with its outputs, and how titles are put; the index's where nothing is said.

    Raises:
        IndexStateError: as `read_space`.
    """
    model, outputs, chunk = config.model, config.outputs, config.chunk
    if config.index and (model is None or chunk is None):
        space = read_space(config.index)
        chunk = chunk or space.chunk
        if model is None:
            model, outputs = space.model, outputs or space.outputs
    assert model is not None  # EndpointConfig has one or the other
    return dataclasses.replace(model, outputs=outputs or model.outputs), chunk


def check_same_space(index: ServedIndex, model: ModelConfig, dtype: str | None = None) -> None:
    """Compare what a model computes with what is in the index.

    `dtype` is what it computes in, where that is known; another one than the index's is warned of.

    Raises:
        IndexStateError: their vectors may not be compared; it names what differs.
    """
    space = read_space(index)
    parts = space_parts(model, resolve_model(model))
    ours, theirs = fingerprint(parts), space.manifest.space_fingerprint
    if ours != theirs:
        names = [f"model.{name}" for name in differences(parts, space.parts)]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise IndexStateError(
            f"index {space.uri}: expected the space of its vectors ({theirs}, "
            f"{space.manifest.model.name}), found {ours} ({model.name}); they differ in "
            f"{', '.join(names[:_SHOWN])}{more}.",
            "Leave model out to serve the index's own.",
        )
    dtypes = space.manifest.model.dtypes
    if dtype and dtype not in dtypes:
        logger.warning(
            "index %s was computed in %s, this endpoint computes in %s: vectors differ a little.",
            space.uri,
            ", ".join(dtypes),
            dtype,
        )
