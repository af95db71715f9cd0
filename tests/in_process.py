"""Runs of a test in this process, whatever engine their configuration names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pipelines.run.in_process import InProcessEngine


def without_ray(monkeypatch: Any) -> None:
    """Let runs of this test stay in this process."""
    monkeypatch.setattr("pipelines.run.context.engine_of", lambda _: InProcessEngine())


@contextmanager
def ray_left_out() -> Iterator[None]:
    """The same as a context, for what is no test: fixtures that share an index."""
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        yield
