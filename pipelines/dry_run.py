"""What a run would be, said without starting it."""

from __future__ import annotations

import json

from actors.model_files import resolve_model
from pipelines.cli import LogFormat
from pipelines.config_pairs import RunConfig
from pipelines.estimate import estimate_run
from pipelines.source import Source
from pipelines.speed import Speed, recall_speed


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
    given = Speed(tokens_per_second, "given") if tokens_per_second else recall_speed(config)
    units = source.units(source.list_files())
    estimate = estimate_run(config, files, source, units, speed=given, actors=actors)
    return json.dumps(estimate.to_json()) if form == "json" else estimate.to_text()
