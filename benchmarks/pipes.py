"""Runs a process that answers JSON lines from its standard input on its standard output."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


class Pipe:
    """A connection to a running process; made by `running`."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self._process, self._errors = process, errors

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the answer to one request.

        Raises:
            RuntimeError: the process ended; the message has the end of its standard error.
        """
        assert self._process.stdin, "made with pipes"
        assert self._process.stdout, "made with pipes"
        with suppress(BrokenPipeError):  # it has ended, which shows below
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(f"a worker ended with {code}: {self._errors.read()[-2_000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def running(python: Path, module: str, folder: Path) -> Iterator[Pipe]:
    """Run `python -m module` in a folder until the end of the block."""
    # Standard error goes to a file: some libraries draw bars there, whatever they are told.
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [python, "-m", module],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            yield Pipe(process, errors)
        finally:
            process.kill()
