"""The counters, as a Prometheus server reads them from a Ray node."""

from __future__ import annotations

import re
import time
import urllib.request

import pytest
import ray
from test_progress import receipt

from pipelines.index.records import FileRecord
from pipelines.run.on_ray import RunMetrics

pytestmark = pytest.mark.usefixtures("ray_cluster")


def scraped() -> str:
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def values(text: str, run_id: str) -> dict[str, float]:
    """`name` or `name{code}` -> value, of one run."""
    found = {}
    for name, labels, value in re.findall(r"^ray_packvec_(\w+)\{(.*)\} (\S+)$", text, re.M):
        tags = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if tags["run_id"] == run_id and "le" not in tags:
            code = f"{{{tags['code']}}}" if "code" in tags else ""
            found[name + code] = float(value)
    return found


def test_metrics_of_receipts_are_at_the_nodes_prometheus_port() -> None:
    part = FileRecord(path="p", rows=1, bytes=1000, sha256="s")
    runs = {name: RunMetrics(name) for name in ("run-a", "run-b")}
    runs["run-a"].update(receipt(10, 500, rejects={"null_text": 2}, part=part, seconds=1.5))
    runs["run-a"].update(receipt(5, 0, rejects={"null_text": 1, "empty_text": 4}, seconds=7.0))
    runs["run-b"].update(receipt(1, 9))
    expected = {
        "documents_total": 15,
        "passages_total": 30,
        "tokens_total": 500,
        "output_bytes_total": 1000,
        "rejects_total{null_text}": 3,
        "rejects_total{empty_text}": 4,
        "slice_seconds_count": 2,
    }
    deadline = time.monotonic() + 30  # Ray exports every second here (conftest.py), else every ten
    while True:  # an export may come in the middle of an update
        text = scraped()
        counted = values(text, "run-a")
        counted.pop("slice_seconds_sum", None)  # made up by Ray from the buckets
        if counted == expected and "slice_seconds_count" in values(text, "run-b"):
            break
        assert time.monotonic() < deadline, counted
        time.sleep(0.2)
    assert values(text, "run-b")["tokens_total"] == 9
    assert len(re.findall(r'slice_seconds_bucket\{.*le="2.0".*run_id="run-a".*\} 1.0', text)) == 1
