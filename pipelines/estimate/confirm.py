"""Asks for confirmation before a run that would write more than the limit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from actors.errors import ConfigError
from actors.models.files import ModelFiles, resolve_model
from pipelines.config.run import RunConfig
from pipelines.estimate.estimate import estimate_run
from pipelines.estimate.speed import RememberedSpeed, recall_speed
from pipelines.source.formats.base import compression_of
from pipelines.source.source import Source
from pipelines.source.units import Unit
from pipelines.terminal.cli import LogFormat
from pipelines.terminal.progress import Progress
from pipelines.terminal.text import byte_count

# Upper bounds for usual corpora; a run above `most_bytes` is only estimated more precisely.
_DECOMPRESSED = 20
_BYTES_A_DOCUMENT = 8
_COLUMN_BYTES = 200  # per passage, for columns other than text, metadata and vectors
_SPARSE_BYTES = 8


def most_bytes(config: RunConfig, files: ModelFiles, units: Sequence[Unit]) -> float:
    """Return an upper bound of what a run writes, from the sizes of its files alone.

    It assumes that every byte is a token and that every passage is half full.
    """
    sizes = {piece.file: piece.file.size for unit in units for piece in unit.pieces}
    if any(size < 0 for size in sizes.values()):
        return math.inf
    is_parquet = any(unit.format == "parquet" for unit in units)
    text = sum(
        size * (_DECOMPRESSED if is_parquet or compression_of(file.path) else 1)
        for file, size in sizes.items()
    )
    known = [unit.documents for unit in units]
    documents = text / _BYTES_A_DOCUMENT if None in known else float(sum(filter(None, known)))
    passages, tokens, most = documents, float(text), files.max_length
    if config.chunk.by == "tokens":
        most = config.chunk.max_tokens or most
        step = max(most - config.chunk.overlap, 1)
        passages += 2 * text / step
        tokens *= most / step * (2 if config.chunk.title_prefix else 1)
    tokens = min(tokens + 8 * passages, passages * most)
    width = np.dtype(config.model.vector_dtype).itemsize
    hidden = int(files.config["hidden_size"])
    dim = min(config.model.truncate_dim or hidden, hidden)
    of_token = _SPARSE_BYTES * ("sparse" in config.outputs)
    if "colbert" in config.outputs:
        # A weight has at least two bytes. Reading the head would need torch, and seconds.
        rows = files.heads["colbert"].stat().st_size // (2 * hidden)
        of_token += min(rows, config.model.truncate_dim or rows) * width
    of_passage = dim * width * ("dense" in config.outputs) + _COLUMN_BYTES
    # Metadata, which each passage repeats, is not in the bound.
    return tokens * of_token + passages * of_passage + 2 * text


@dataclass(frozen=True)
class Permit:
    """The way a large run is confirmed: once, before its plan is stored."""

    yes: bool = False
    """Whether runs of any size are allowed."""
    ask: Callable[[str], bool] | None = None
    """Asks a person a question; None if nobody can answer."""

    def check(
        self,
        config: RunConfig,
        files: ModelFiles,
        source: Source,
        units: Sequence[Unit],
        progress: Progress,
    ) -> None:
        """Return if the run may start. The size of small runs is not estimated.

        Raises:
            ConfigError: the run would write more than `confirm_bytes`, and nobody confirmed it.
        """
        limit = config.confirm_bytes
        if self.yes or limit is None or most_bytes(config, files, units) <= limit:
            return
        progress.stage("estimating its size")
        estimate = estimate_run(config, files, source, units, speed=recall_speed(config))
        if estimate.total_bytes <= limit:
            return
        size, most = byte_count(estimate.total_bytes), byte_count(limit)
        if self.ask is None:
            raise ConfigError(
                f"this run would write about {size}, more than confirm_bytes ({most}) allows "
                "without confirmation.",
                "Look at --dry-run, then add --yes or raise confirm_bytes.",
            )
        with progress.paused():
            if not self.ask(f"{estimate.to_text()}\nMore than {most} (confirm_bytes). Start?"):
                raise ConfigError(f"not started: writing about {size} was not confirmed.")


def dry_run(
    config: RunConfig, tokens_per_second: float | None, actors: int | None, form: LogFormat
) -> str:
    """Return the estimate as text or as one JSON object; starts no Ray and no encoder.

    `tokens_per_second`: the speed of one actor; by default, as measured on this machine.

    Raises:
        EmbedError: the run could not start, for example because the model does not exist.
    """
    config = config.with_absolute_paths()
    source = Source(config.source)
    files = resolve_model(config.encoder)
    speed = recall_speed(config)
    if tokens_per_second:
        speed = RememberedSpeed(tokens_per_second, "given")
    units = source.units(source.list_files())
    estimate = estimate_run(config, files, source, units, speed=speed, actors=actors)
    return json.dumps(estimate.to_json()) if form == "json" else estimate.to_text()
