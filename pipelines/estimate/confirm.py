"""Ask before a run writes very much."""

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

# More than people's corpora have; what is above the bound is looked at closely, no more.
_DECOMPRESSED = 20
_BYTES_A_DOCUMENT = 8
_COLUMN_BYTES = 200  # of a passage's columns beside text, metadata and vectors
_SPARSE_BYTES = 8


def most_bytes(config: RunConfig, files: ModelFiles, units: Sequence[Unit]) -> float:
    """What the run could write at most, by the sizes of its files alone.

    Every byte a token, every passage half full.
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
        # Two bytes a weight at least. To read the head itself would take torch, and seconds.
        rows = files.heads["colbert"].stat().st_size // (2 * hidden)
        of_token += min(rows, config.model.truncate_dim or rows) * width
    of_passage = dim * width * ("dense" in config.outputs) + _COLUMN_BYTES
    # Metadata comes again with each passage of a document; it is not in the bound.
    return tokens * of_token + passages * of_passage + 2 * text


@dataclass(frozen=True)
class Permit:
    """Asked once, before a new plan is pinned; a run that goes on was agreed to before."""

    yes: bool = False
    """Whatever it writes."""
    ask: Callable[[str], bool] | None = None
    """Puts a question to a person; None where there is none to answer."""

    def check(
        self,
        config: RunConfig,
        files: ModelFiles,
        source: Source,
        units: Sequence[Unit],
        progress: Progress,
    ) -> None:
        """Return if the run may write what it will. Small runs are not looked at closely.

        Raises:
            ConfigError: it would write more than `confirm_bytes`, and nobody agrees.
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
                "unasked.",
                "Look at --dry-run, then add --yes or raise confirm_bytes.",
            )
        with progress.paused():
            if not self.ask(f"{estimate.to_text()}\nMore than {most} (confirm_bytes). Start?"):
                raise ConfigError(f"not started: about {size} were not confirmed.")


def dry_run(
    config: RunConfig, tokens_per_second: float | None, actors: int | None, form: LogFormat
) -> str:
    """The estimate as text or as one JSON object; starts no Ray, no encoder, and writes nothing.

    `tokens_per_second`: of one actor; what was measured on this machine when not given.

    Raises:
        EmbedError: what would also keep the run from starting: no such model, file or column.
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
