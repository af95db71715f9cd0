"""Measures how long a run with many done records takes to resume.

    python -m benchmarks.resume --records 10000

Plans a run over one slice more than `--records`, writes the done records of a killed run (with and
without digests), then times `embed_corpus` until it starts Ray for the last slice.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config import RunConfig, parse_config
from pipelines.embed_corpus import embed_corpus
from pipelines.index.layout import digests_folder, done_path
from pipelines.index.records import Done, EncoderRecord, FileRecord
from pipelines.plan.plan import DoneRecords, plan_run
from pipelines.run.context import RunContext
from pipelines.run.in_process import InProcessEngine
from pipelines.run.tasks import Task, next_embed_task
from pipelines.store import Store
from pipelines.terminal.cli import silent
from pipelines.terminal.progress import Progress

_FILE = FileRecord(path="data/run/000000-0000000000-aaaa.parquet", rows=9, bytes=9, sha256="0" * 64)
_ENCODER = EncoderRecord(
    space_fingerprint="0" * 64,
    dim=384,
    colbert_dim=None,
    max_length=512,
    pooling="cls",
    dtype="float16",
    device="cuda:0",
    worker="host:1",
)


class StartError(Exception):
    """Raised at the point where Ray would be started."""


class _NotStarted(InProcessEngine):
    def running(self, store: Store, *, verbose: bool) -> AbstractContextManager[None]:
        raise StartError


def prepare(config: RunConfig, records: int) -> tuple[Store, str]:
    """Plan a run and write all done records but one."""
    context = RunContext.of(config, Progress(silent()))
    store = context.store
    task = next_embed_task(context, fresh=False, replay=False)
    assert isinstance(task, Task)
    plan_run(store, config, context.request, task.pin, context.listing.files, task.run_id)
    folder = Path(store.path(done_path(task.run_id, 0, 0))).parent
    folder.mkdir(parents=True)
    for first in range(records):
        done = Done(
            run_id=task.run_id,
            nonce=f"{first:012d}",
            unit=0,
            first_document=first,
            documents=1,
            last=False,
            embedded=1,
            passages=9,
            tokens=900,
            truncated=0,
            rejects={},
            masked=[],
            part=_FILE,
            ledger=_FILE,
            reject_file=None,
            encoder=_ENCODER,
            seconds=1.0,
        )
        # Not through the store, whose fsync would make this the longest part.
        (folder / Path(done_path(task.run_id, 0, first)).name).write_bytes(done.to_bytes())
    return store, task.run_id


def seconds_to_start(config: RunConfig) -> float:
    """Return the seconds of the command's own work, from the configuration to the start of Ray."""
    began = time.perf_counter()
    try:
        embed_corpus(config, engine=_NotStarted())
    except StartError:
        return time.perf_counter() - began
    raise AssertionError("expected something left to do")


def main() -> None:
    """Print both times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000)
    records = parser.parse_args().records
    with tempfile.TemporaryDirectory() as folder:
        documents = Path(folder, "documents.parquet")
        n = records + 1
        ids, texts = [str(i) for i in range(n)], ["a document"] * n
        pq.write_table(pa.table({"id": ids, "text": texts}), documents, row_group_size=n)
        config = parse_config(
            {
                "source": {"uri": str(documents)},
                "index": {"uri": f"{folder}/index"},
                "model": {"name": "builtin:tiny-m3"},
                "slice": {"documents": 1},
            }
        )
        store, run_id = prepare(config, records)
        cold = seconds_to_start(config)
        digests = len(store.list(digests_folder(run_id)))
        assert len(DoneRecords(store, run_id).read()) == records
        warm = seconds_to_start(config)
    sys.stdout.write(
        f"{records:,} done records: {cold:.2f} s without digests, {warm:.2f} s with {digests}\n"
    )


if __name__ == "__main__":
    main()
