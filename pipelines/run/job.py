"""What a run computes: vectors of documents' passages, or scores of pairs.

Everything that differs between the two kinds is here; slices, parts, done records, commit and
reading are shared.
"""

from __future__ import annotations

from typing import Protocol

from actors.config import ModelConfig
from actors.encoded import SCORE, TokenEncoder
from actors.errors import ConfigError
from actors.models.files import resolve_model
from actors.models.reranker_files import resolve_reranker
from pipelines.config.run import AnyRunConfig, PairsConfig, RunConfig
from pipelines.passages.blocks import BlockBuilder
from pipelines.passages.rows import pair_blocks, passage_blocks
from pipelines.plan.request import Request


class Job(Protocol):
    """What one configuration computes, on the driver and on every worker."""

    name: str
    """Name of the model."""
    revision: str | None
    """Revision of the model on its hub."""
    outputs: tuple[str, ...]
    """The columns that the model adds to rows."""
    vector_dtype: str
    """The stored type of vectors or scores."""

    def check(self) -> None:
        """Refuse rows that the model cannot hold, before anything is started.

        Raises:
            EmbedError: one of its kinds.
        """

    def request(self) -> Request:
        """Everything that decides the result.

        Raises:
            ModelError: the model's files are not there, or not what is asked for.
        """

    def blocks(self) -> BlockBuilder:
        """What makes rows and tokens of documents; loads a tokenizer.

        Raises:
            ConfigError, ModelError: rows that the model cannot hold.
        """

    def encoder(self) -> TokenEncoder:
        """The loaded model.

        Raises:
            ModelError: it cannot be loaded.
        """


class VectorJob:
    """Vectors of passages."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self.name, self.revision = config.model.name, config.model.revision
        self.outputs: tuple[str, ...] = config.outputs
        self.vector_dtype: str = config.model.vector_dtype

    def check(self) -> None:
        """Refuse passages that the model cannot hold."""
        self.blocks()

    def request(self) -> Request:
        """As `Job`."""
        return Request.of(self._config, resolve_model(self._config.encoder))

    def blocks(self) -> BlockBuilder:
        """As `Job`."""
        return passage_blocks(self._config, resolve_model(self._config.encoder))

    def encoder(self) -> TokenEncoder:
        """As `Job`."""
        return load_encoder(self._config.encoder)


def load_encoder(config: ModelConfig) -> TokenEncoder:
    """An encoder. Imported here: a driver, and a simulated one, need no torch.

    Raises:
        ModelError: it cannot be loaded.
    """
    if config.simulated_tokens_per_second is not None:
        from actors.simulated import load_simulated

        return load_simulated(config)
    from actors.encoder import load_encoder as load

    return load(config)


class ScoreJob:
    """Scores of pairs."""

    outputs: tuple[str, ...] = (SCORE,)
    vector_dtype: str = "float32"

    def __init__(self, config: PairsConfig) -> None:
        self._config = config
        self.name, self.revision = config.reranker.name, config.reranker.revision

    def check(self) -> None:
        """Refuse pairs that the model cannot hold."""
        self.blocks()

    def request(self) -> Request:
        """As `Job`."""
        return Request.of_pairs(self._config, resolve_reranker(self._config.reranker))

    def blocks(self) -> BlockBuilder:
        """As `Job`."""
        return pair_blocks(self._config, resolve_reranker(self._config.reranker))

    def encoder(self) -> TokenEncoder:
        """As `Job`."""
        from actors.pair_scorer import load_pair_scorer  # late: torch

        return load_pair_scorer(self._config.reranker)


def job_of(config: AnyRunConfig) -> Job:
    """The job that a configuration describes."""
    if isinstance(config, PairsConfig):
        return ScoreJob(config)
    if isinstance(config, RunConfig):
        return VectorJob(config)
    raise ConfigError(f"expected a configuration of a run, got {type(config).__name__}.")
