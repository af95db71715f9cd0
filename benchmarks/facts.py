"""What every result says of where and when it was measured."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

_RESULTS = Path(__file__).parent / "results"
_VERSIONS = ("ray", "torch", "transformers", "tokenizers", "pyarrow")


def write_result(name: str, rows: Sequence[dict[str, Any]], **more: Any) -> None:
    """Write benchmarks/results/<name>.json."""
    result = {
        "benchmark": name,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpus": os.cpu_count(), "processor": _processor()},
        "python": platform.python_version(),
        "versions": {package: version(package) for package in _VERSIONS},
        **more,
        "rows": list(rows),
    }
    _RESULTS.mkdir(exist_ok=True)
    (_RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def read_result(name: str) -> dict[str, Any]:
    """What was written last; empty where nothing was."""
    path = _RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
