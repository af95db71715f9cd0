"""What a run computes: vectors of documents' passages, or scores of pairs.

All that differs between the two is here; slices, parts, done records, commit and view are one.
"""

from __future__ import annotations

from typing import Protocol

from actors.config import ModelConfig
from actors.encoded import SCORE, TokenEncoder
from actors.errors import ConfigError
from actors.model_files import resolve_model
from actors.rerank.checkpoint import resolve_reranker
from pipelines.blocks import BlockBuilder
from pipelines.config import AnyRunConfig, RunConfig
from pipelines.config_pairs import PairsConfig
from pipelines.pair_rows import pair_blocks
from pipelines.passage_rows import passage_blocks
from pipelines.records import Manifest
from pipelines.request import Request
from pipelines.storage import Store


class Work(Protocol):
    """The work of one configuration, on the driver and on every worker."""

    name: str
    """Of the model."""
    revision: str | None
    outputs: tuple[str, ...]
    """The columns it adds to rows."""
    vector_dtype: str

    def check(self) -> None:
        """Refuse what could never come to a good end, before anything is started.

        Raises:
            EmbedError: one of its kinds.
        """

    def request(self) -> Request:
        """What decides its result.

        Raises:
            ModelError: the model's files are not there, or not what is asked for.
        """

    def blocks(self) -> BlockBuilder:
        """Makes rows and tokens of what is read; loads a tokenizer.

        Raises:
            ConfigError, ModelError: rows that the model cannot hold.
        """

    def encoder(self) -> TokenEncoder:
        """Loads the model.

        Raises:
            ModelError: it cannot be loaded.
        """

    def findings(self, store: Store, manifest: Manifest) -> list[str]:
        """What speaks against publishing a generation."""


class VectorWork:
    """Vectors of passages."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self.name, self.revision = config.model.name, config.model.revision
        self.outputs: tuple[str, ...] = config.outputs
        self.vector_dtype: str = config.model.vector_dtype

    def check(self) -> None:
        """Passages that the model cannot hold; a gate that nothing could pass."""
        from pipelines.gate import check_gate  # late: workers publish nothing

        self.blocks()
        check_gate(self._config)

    def request(self) -> Request:
        """As `Work`."""
        return Request.of(self._config, resolve_model(self._config.encoder))

    def blocks(self) -> BlockBuilder:
        """As `Work`."""
        return passage_blocks(self._config, resolve_model(self._config.encoder))

    def encoder(self) -> TokenEncoder:
        """As `Work`."""
        return load_encoder(self._config.encoder)

    def findings(self, store: Store, manifest: Manifest) -> list[str]:
        """What its gate finds."""
        from pipelines.gate import findings  # late, as above

        return findings(store, self._config, manifest)


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


class ScoreWork:
    """Scores of pairs."""

    outputs: tuple[str, ...] = (SCORE,)
    vector_dtype: str = "float32"

    def __init__(self, config: PairsConfig) -> None:
        self._config = config
        self.name, self.revision = config.reranker.name, config.reranker.revision

    def check(self) -> None:
        """Pairs that the model cannot hold."""
        self.blocks()

    def request(self) -> Request:
        """As `Work`."""
        return Request.of_pairs(self._config, resolve_reranker(self._config.reranker))

    def blocks(self) -> BlockBuilder:
        """As `Work`."""
        return pair_blocks(self._config, resolve_reranker(self._config.reranker))

    def encoder(self) -> TokenEncoder:
        """As `Work`."""
        from actors.pair_scorer import load_pair_scorer  # late: torch

        return load_pair_scorer(self._config.reranker)

    def findings(self, store: Store, manifest: Manifest) -> list[str]:
        """Scores are published as they are."""
        return []


def work_of(config: AnyRunConfig) -> Work:
    """The work of a configuration."""
    if isinstance(config, PairsConfig):
        return ScoreWork(config)
    if isinstance(config, RunConfig):
        return VectorWork(config)
    raise ConfigError(f"expected a configuration of a run, got {type(config).__name__}.")
