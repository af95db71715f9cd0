"""A process that answers requests, one JSON line each, on its standard input and output."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Pipe:
    """`python -m module` in a folder; ends with the `with` block."""

    def __init__(self, python: Path, module: str, folder: Path) -> None:
        self._name = f"{python} -m {module}"
        self._process = subprocess.Popen(
            [python, "-m", module],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            RuntimeError: the process ended instead; what it said is on standard error.
        """
        assert self._process.stdin, "made with pipes"
        assert self._process.stdout, "made with pipes"
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
