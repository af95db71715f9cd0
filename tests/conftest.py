"""Shared by all tests: one Ray cluster, one S3 server, small corpora."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Files are tested beside each other, and beside Ray's processes. Threads of one sum that wait for
# each other's turn on a busy CPU take ten times as long as one thread does.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import s3_bucket, s3_endpoint

from pipelines.config import AnyRunConfig, RunConfig, parse_config

__all__ = ["config_for", "s3_bucket", "s3_endpoint"]

AnyConfig = TypeVar("AnyConfig", bound=AnyRunConfig)
ROOT = Path(__file__).parent.parent
CORPUS = ROOT / "conf/data/simplewiki-1200.parquet"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster with faked GPUs: it gives the production plan on any machine."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=512 << 20,
        _system_config={"metrics_report_interval_ms": 1000},
    )
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def _empty_pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """report.html takes 0.3 s to draw, and runs in tests are many: few ask for `pages`."""
    if "pages" not in request.fixturenames:
        monkeypatch.setattr("pipelines.reports.run_report.run_page", lambda _: "")


@pytest.fixture
def pages() -> None:
    """Runs of this test draw their report.html."""


@pytest.fixture(scope="session")
def articles() -> pa.Table:
    """Real articles: id, url, title, text."""
    return pq.read_table(CORPUS)


def config_for(source: Path | str, /, **sections: Any) -> RunConfig:
    """A configuration over the tiny M3; sections are merged over the defaults here."""
    raw: dict[str, Any] = {
        "source": {"uri": str(source), "columns": {"title": "title", "metadata": ["url"]}},
        "model": {"name": "builtin:tiny-m3", "max_length": 128},
        "outputs": ["dense", "sparse", "colbert"],
        "chunk": {"max_tokens": 96, "overlap": 8},
        "slice": {"documents": 20},
        "ray": {"engine": "in_process", "actors": 1},
    }
    for name, value in sections.items():
        raw[name] = raw[name] | value if isinstance(raw.get(name), dict) else value
    return parse_config(raw)


def in_process(config: AnyConfig) -> AnyConfig:
    """The same configuration, run in this process."""
    ray = config.ray.model_copy(update={"engine": "in_process"})
    return config.model_copy(update={"ray": ray})


@pytest.fixture
def make_config(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., RunConfig]:
    """`config_for` with an index of the test's own; on Ray where the test uses the cluster."""
    engine = "ray" if "ray_cluster" in request.fixturenames else "in_process"

    def make(source: Path | str, /, **sections: Any) -> RunConfig:
        sections["index"] = {"uri": str(tmp_path / "index")} | sections.get("index", {})
        sections["ray"] = {"engine": engine} | sections.get("ray", {})
        return config_for(source, **sections)

    return make
