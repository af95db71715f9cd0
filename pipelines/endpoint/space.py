"""Which model an endpoint loads: the configured one, or its index's."""

from __future__ import annotations

import dataclasses

from actors.config import OUTPUTS, ModelConfig, Output
from actors.errors import IndexStateError
from pipelines.config_sections import ChunkConfig, ServedIndex
from pipelines.endpoint.config import EndpointConfig
from pipelines.index import Index, open_index
from pipelines.space import IndexSpace, read_space


def space_of(index: ServedIndex) -> IndexSpace:
    """What the served index says of its vectors. Raises as `read_space`."""
    return read_space(index.uri, index.storage_options, index.generation)


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


def searched_index(config: EndpointConfig) -> tuple[Index, tuple[Output, ...]] | None:
    """What an endpoint searches, by which of its outputs; None without `search`.

    Raises:
        IndexStateError: no index, or it has vectors of no output that the endpoint gives.
    """
    if config.search is None or config.index is None:
        return None
    wanted = config.index
    index = open_index(wanted.uri, wanted.storage_options, generation=wanted.generation)
    model, _ = model_to_load(config)
    outputs = tuple(o for o in OUTPUTS if o in model.outputs and o in index.info.outputs)
    if not outputs:
        raise IndexStateError(
            f"outputs: expected some of {', '.join(index.info.outputs)}, of which {wanted.uri} has "
            f"vectors, got {', '.join(model.outputs)}."
        )
    return index, outputs
