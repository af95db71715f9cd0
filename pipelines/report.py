"""config.yaml, report.json and report.html of a generation: for people, after its commit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from pipelines.busy import encoder_busy
from pipelines.config import AnyRunConfig
from pipelines.layout import generation_path
from pipelines.records import Done, Manifest
from pipelines.storage import Store


def read_report(store: Store, generation: int) -> dict[str, Any]:
    """report.json of a generation; empty where a run died before it wrote one."""
    try:
        report: dict[str, Any] = json.loads(store.read(_report_path(generation)))
    except FileNotFoundError:
        return {}
    return report


def _report_path(generation: int) -> str:
    return generation_path(generation, "report.json")


def write_report(
    store: Store,
    config: AnyRunConfig,
    manifest: Manifest,
    done: Sequence[Done],
    this_run: Mapping[str, Any],
    *,
    published: bool,
    gate: Sequence[str] = (),
) -> None:
    """What a person reads later; `gate`: what kept it from going live."""
    from pipelines.run_page import write_page  # late: they read reports too
    from pipelines.run_report import RunReport

    seconds = sum(record.seconds for record in done)
    report = {
        "generation": manifest.generation,
        "run_id": manifest.run_id,
        "started": manifest.started,
        "ended": manifest.ended,
        "published": published,
        "gate": list(gate),
        "slices": len(done),
        "encoder_seconds": round(seconds, 3),
        "encoder_busy": encoder_busy(done),
        "counts": manifest.counts.model_dump(),
        "bytes": sum(record.part.bytes for record in done if record.part),
        **this_run,
    }
    number = manifest.generation
    configuration = yaml.safe_dump(config.resolved(), sort_keys=False, allow_unicode=True)
    store.overwrite(generation_path(number, "config.yaml"), configuration.encode())
    store.overwrite(_report_path(number), json.dumps(report, indent=1).encode())
    write_page(RunReport(store, manifest, done, report))
