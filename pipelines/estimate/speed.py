"""Remembers the speed of one encoder actor on this machine between runs.

It is stored in a small JSON file in the user's cache. A damaged file is ignored.
"""

from __future__ import annotations

import json
import math
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config.run import RunConfig
from pipelines.store.files import put_local

_MOST = 100  # remembered configurations


@dataclass(frozen=True)
class RememberedSpeed:
    """The speed of one actor, in tokens per second."""

    tokens_per_second: float
    origin: str
    """Where the number comes from, for people: "given" or "measured here on cuda"."""


def remember_speed(config: RunConfig, tokens_per_second: float, device: str) -> None:
    """Store the speed of one actor, for configurations with equal `_key`."""
    if not 0 < tokens_per_second < math.inf:
        return
    known = _read()
    key = _key(config)
    known.pop(key, None)  # the newest entry comes last
    known[key] = {"tokens_per_second": float(tokens_per_second), "device": device}
    kept = dict(list(known.items())[-_MOST:])
    with suppress(OSError):  # a missing home or a full disk must not stop a run
        put_local(_path(), json.dumps(kept, indent=1).encode(), exclusive=False)


def recall_speed(config: RunConfig) -> RememberedSpeed | None:
    """Return what `remember_speed` stored for this configuration, or None."""
    found = _read().get(_key(config))
    if not isinstance(found, dict):
        return None
    speed, device = found.get("tokens_per_second"), found.get("device")
    if not isinstance(speed, float) or not 0 < speed < math.inf:
        return None
    return RememberedSpeed(speed, f"measured here on {device}")


def _key(config: RunConfig) -> str:
    """Return what determines the speed of an actor, except the length of passages."""
    model = config.with_absolute_paths().model
    parts = {
        "host": socket.gethostname(),
        "model": model.name,
        "outputs": sorted(config.outputs),
        "dtype": model.dtype,
        "device": model.device,
        "gpus_per_actor": config.ray.gpus_per_actor,
        "cpus_per_actor": config.ray.cpus_per_actor,
        "simulated": model.simulated_tokens_per_second,
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
