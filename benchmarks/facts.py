"""Writes and reads results, with the machine and date of the measurement."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from benchmarks.report import RESULTS, machine

_VERSIONS = ("ray", "torch", "transformers", "tokenizers", "pyarrow")


def write_result(name: str, rows: Sequence[dict[str, Any]], **more: Any) -> None:
    """Write benchmarks/results/<name>.json."""
    result = {
        "benchmark": name,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in _VERSIONS},
        **more,
        "rows": list(rows),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def read_result(name: str) -> dict[str, Any]:
    """Return the last written result, empty if there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}
