"""Which run a command starts, goes on with, or does not need."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.errors import ConfigError, IndexStateError
from pipelines.run.context import RunContext
from pipelines.run.tasks import Task, next_embed_task
from pipelines.terminal.cli import silent
from pipelines.terminal.progress import Progress


@pytest.fixture
def next_task(tmp_path, make_config):
    """What there is to do for a corpus of four documents."""
    path = tmp_path / "docs.parquet"
    columns = ("id", "text", "title", "url")
    pq.write_table(pa.table({c: [f"{c} {i}" for i in range(4)] for c in columns}), path)

    def make(*, fresh=False, replay=False, **sections):
        context = RunContext.of(make_config(path, **sections), Progress(silent()))
        return next_embed_task(context, fresh=fresh, replay=replay)

    return make


def test_next_task_on_an_empty_place_is_a_first_run(next_task):
    task = next_task()
    assert isinstance(task, Task)
    assert task.parent is None
    units, listing = task.pin()
    assert [unit.documents for unit in units] == [4]
    assert len(listing) == 32
    assert next_task().run_id == task.run_id


def test_next_task_fresh_is_another_run(next_task):
    assert next_task(fresh=True).run_id != next_task().run_id


def test_next_task_of_another_request_is_another_run(next_task):
    assert next_task(chunk={"max_tokens": 50}).run_id != next_task().run_id


def test_next_task_replay_without_an_index_is_refused(next_task):
    with pytest.raises(IndexStateError, match=r"expected a committed index whose rejects"):
        next_task(replay=True)


def test_next_task_fresh_and_replay_at_once_is_refused(next_task):
    with pytest.raises(ConfigError, match="expected one of them, got both"):
        next_task(fresh=True, replay=True)
