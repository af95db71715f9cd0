"""Defines what a run computes: vectors of passages, or scores of pairs.

All differences between the two kinds are here. They share slices, parts, done records, commit and
reading.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from actors.config import ModelConfig, RerankerConfig
from actors.encoded import SCORE, TokenEncoder
from actors.errors import ConfigError
from actors.models.files import resolve_model
from actors.models.reranker_files import resolve_reranker
from pipelines.config.run import AnyRunConfig, PairsConfig, RunConfig
from pipelines.passages.blocks import BlockBuilder
from pipelines.passages.rows import pair_blocks, passage_blocks
from pipelines.plan.request import Request


@dataclass(frozen=True)
class Job:
    """The computation that a configuration describes, for the driver and every worker."""

    model: ModelConfig | RerankerConfig
    """The name, revision and settings of the model."""
    outputs: tuple[str, ...]
    """The columns that the model adds to rows."""
    vector_dtype: str
    """The stored dtype of vectors or scores."""
    request: Callable[[], Request]
    """Returns everything that determines the result. Raises ModelError: model files are missing or
    differ from the configuration."""
    blocks: Callable[[], BlockBuilder]
    """Returns the builder of token rows from documents; loads a tokenizer. Raises ConfigError or
    ModelError: the model cannot hold such rows."""
    encoder: Callable[[], TokenEncoder]
    """Loads the model. Raises ModelError."""


def job_of(config: AnyRunConfig) -> Job:
    """Return the job that a configuration describes."""
    if isinstance(config, PairsConfig):
        return Job(
            config.reranker,
            outputs=(SCORE,),
            vector_dtype="float32",
            request=lambda: Request.of_pairs(config, resolve_reranker(config.reranker)),
            blocks=lambda: pair_blocks(config, resolve_reranker(config.reranker)),
            encoder=lambda: _load_scorer(config.reranker),
        )
    if isinstance(config, RunConfig):
        return Job(
            config.model,
            outputs=config.outputs,
            vector_dtype=config.model.vector_dtype,
            request=lambda: Request.of(config, resolve_model(config.encoder)),
            blocks=lambda: passage_blocks(config, resolve_model(config.encoder)),
            encoder=lambda: load_encoder(config.encoder),
        )
    raise ConfigError(f"expected a configuration of a run, got {type(config).__name__}.")


def load_encoder(config: ModelConfig) -> TokenEncoder:
    """Load an encoder. Imports are late, as drivers and simulated encoders need no torch.

    Raises:
        ModelError: the model cannot be loaded.
    """
    if config.simulated_tokens_per_second is not None:
        from actors.simulated import load_simulated

        return load_simulated(config)
    from actors.encoder import load_encoder as load

    return load(config)


def _load_scorer(config: RerankerConfig) -> TokenEncoder:
    from actors.pair_scorer import load_pair_scorer  # late: torch

    return load_pair_scorer(config)
