"""Which model an endpoint loads: the configured one, or its index's."""

from __future__ import annotations

import dataclasses

from actors.config import ModelConfig
from pipelines.config_sections import ChunkConfig
from pipelines.endpoint.config import EndpointConfig, ServedIndex
from pipelines.space import IndexSpace, read_space


def space_of(index: ServedIndex) -> IndexSpace:
    """What the served index says of its vectors. Raises as `read_space`."""
    return read_space(index.uri, index.storage_options)


def model_to_load(config: EndpointConfig) -> tuple[ModelConfig, ChunkConfig | None]:
    """The model with its outputs, and how titles are put; the index's where nothing is said.

    Raises:
        IndexStateError: as `read_space`.
    """
    model, outputs, chunk = config.model, config.outputs, config.chunk
    if config.index and (model is None or chunk is None):
        run = space_of(config.index).run
        chunk = chunk or run.chunk
        if model is None:
            model, outputs = run.model, outputs or run.outputs
    assert model is not None  # EndpointConfig has one or the other
    return dataclasses.replace(model, outputs=outputs or model.outputs), chunk
