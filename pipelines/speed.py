"""How fast one encoder actor was on this machine, remembered between runs.

A small JSON file in the user's cache: a convenience, so that whatever is wrong with it is ignored.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config import RunConfig
from pipelines.records import Done

_MOST = 100  # machines and models
_SETTLED_SECONDS = 10.0  # slices end in bursts: less says nothing


@dataclass(frozen=True)
class Speed:
    """Tokens a second of one actor."""

    tokens_per_second: float
    origin: str
    """For people: "measured on cuda", "given"."""


class SpeedMeter:
    """Times a run by its receipts, from the first on: loading the model does not count."""

    def __init__(self, actors: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._actors, self._clock = actors, clock
        self._first: float | None = None
        self._last = 0.0
        self._tokens = 0
        self._device = ""

    def add(self, done: Done) -> None:
        """Count one slice that this run has finished."""
        self._last = self._clock()
        if self._first is None:
            self._first = self._last
        else:
            self._tokens += done.tokens
        self._device = done.encoder.device

    def remember(self, config: RunConfig) -> None:
        """Keep the speed, if the run was long enough to tell."""
        seconds = self._last - (self._first or self._last)
        if seconds >= _SETTLED_SECONDS:
            remember_speed(config, self._tokens / seconds / self._actors, self._device)


def remember_speed(config: RunConfig, tokens_per_second: float, device: str) -> None:
    """Keep what one actor did, for a configuration that encodes alike on this machine."""
    if not 0 < tokens_per_second < math.inf:
        return
    known = _read()
    key = _key(config)
    known.pop(key, None)  # the newest is last
    known[key] = {"tokens_per_second": float(tokens_per_second), "device": device}
    kept = dict(list(known.items())[-_MOST:])
    path = _path()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    with suppress(OSError):  # no home, no room: nothing that should stop a run
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps(kept, indent=1), encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def recall_speed(config: RunConfig) -> Speed | None:
    """What `remember_speed` kept, None where nothing fits."""
    found = _read().get(_key(config))
    if not isinstance(found, dict):
        return None
    speed, device = found.get("tokens_per_second"), found.get("device")
    if not isinstance(speed, float) or not 0 < speed < math.inf:
        return None
    return Speed(speed, f"measured here on {device}")


def _key(config: RunConfig) -> str:
    """What decides an actor's speed, less the length of the passages."""
    model = config.with_absolute_paths().model
    parts = {
        "host": socket.gethostname(),
        "model": model.name,
        "outputs": sorted(config.outputs),
        "dtype": model.dtype,
        "device": model.device,
        "gpus_per_actor": config.ray.gpus_per_actor,
        "cpus_per_actor": config.ray.cpus_per_actor,
    }
    return json.dumps(parts, sort_keys=True)


def _path() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "packvec" / "speed.json"


def _read() -> dict[str, Any]:
    try:
        found = json.loads(_path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
