"""Plans: what makes a run the same run, and what of it is left to do."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.errors import ConfigError, IndexStateError, SourceChangedError
from actors.models.files import resolve_model
from actors.models.tiny import ensure_tiny_m3
from pipelines.config import parse_config
from pipelines.index.layout import done_path, plan_path, units_path, unreadable_path
from pipelines.index.records import Done, EncoderRecord
from pipelines.plan.plan import (
    TODO_SCHEMA,
    incomplete_units,
    load_plan,
    plan_run,
    read_done,
    todo_table,
    unit_of,
)
from pipelines.plan.request import Request
from pipelines.run.context import RunContext
from pipelines.run.tasks import Task, next_embed_task
from pipelines.source import Source, Unit
from pipelines.source.units import FileRange, Listing, SourceFile
from pipelines.store import open_store
from pipelines.terminal.cli import silent
from pipelines.terminal.progress import Progress

RAW = {
    "source": {"uri": "s3://docs/wiki", "columns": {"title": "title", "metadata": ["url"]}},
    "index": {"uri": "s3://index/wiki"},
    "model": {"name": "builtin:tiny-m3", "max_length": 128},
    "outputs": ["dense", "sparse"],
    "chunk": {"max_tokens": 96, "overlap": 8},
}


def request_of(changes=()):
    raw = json.loads(json.dumps(RAW))
    for key, value in dict(changes).items():
        *parents, last = key.split(".")
        section = raw
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    config = parse_config(raw)
    return Request.of(config, resolve_model(config.encoder))


# The request


def test_run_id_of_the_same_result_is_equal():
    same = [
        {"ray.actors": 3, "ray.gpus_per_actor": 0.5, "ray.address": "ray://head:10001"},
        {"ray.cpus_per_actor": 4, "ray.slices_per_actor": 5},
        {"model.dtype": "float32", "model.device": "cpu", "model.max_batch_tokens": 512},
        {"source.storage_options": {"key": "k", "secret": "s"}},
        {"index.storage_options": {"key": "k", "secret": "s"}, "index.uri": "s3://another/index"},
        {"outputs": ["sparse", "dense"]},
        {"chunk.by": "tokens", "source.columns.id": "id", "source.limit": None},
        {"slice.max_tokens": 1_048_576, "slice.documents": 1000},
        {"model.query_max_length": 128},
    ]
    first = request_of()
    for changes in same:
        assert request_of(changes).run_id() == first.run_id(), changes
        assert request_of(changes).differences(first.parts) == [], changes
    assert first.differences(json.loads(json.dumps(first.parts))) == []


# Key -> (another value, is the space the same, is the index the same).
DIFFERENT = {
    "chunk.max_tokens": (95, True, False),
    "chunk.overlap": (9, True, False),
    "chunk.by": ("none", True, False),
    "outputs": (["dense"], True, False),
    "source.uri": ("s3://docs/other", True, True),
    "source.limit": (5, True, True),
    "source.columns.id": ("key", True, False),
    "source.columns.text": ("body", True, False),
    "source.columns.title": (None, True, False),
    "source.columns.metadata": ([], True, False),
    "model.max_length": (127, False, False),
    "model.pooling": ("mean", False, False),
    "model.normalize": (False, False, False),
    "model.truncate_dim": (32, False, False),
    "model.query_instruction": ("query: ", False, False),
    "model.passage_instruction": ("passage: ", False, False),
    "model.vector_dtype": ("float32", True, False),
    "slice.documents": (7, True, True),
    "slice.max_tokens": (7, True, True),
    "index.store_text": (False, True, False),
    "index.colbert_storage": ("bytes", True, False),
}
CALLED = {
    "model.query_instruction": "model.prompts.query.before",
    "model.passage_instruction": "model.prompts.passage.before",
    "model.vector_dtype": "vector_dtype",
}


@pytest.mark.parametrize("key", DIFFERENT)
def test_run_id_of_another_result_differs_and_fingerprints_where_they_should(key):
    value, space, index = DIFFERENT[key]
    request, other = request_of(), request_of({key: value})
    assert request.run_id() != other.run_id()
    assert CALLED.get(key, key) in request.differences(other.parts)
    assert CALLED.get(key, key) in other.differences(request.parts)
    assert (request.space_fingerprint == other.space_fingerprint) == space
    assert (request.index_fingerprint == other.index_fingerprint) == index


def test_run_id_of_another_weight_differs(tmp_path):
    copies = [shutil.copytree(ensure_tiny_m3(), tmp_path / name) for name in ("same", "other")]
    with (copies[1] / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    same, other = (request_of({"model.name": str(folder)}) for folder in copies)
    assert same.run_id() == request_of().run_id()
    assert other.run_id() != request_of().run_id()
    assert same.differences(other.parts) == ["model.weights.model.safetensors"]
    assert same.space_fingerprint != other.space_fingerprint


def test_run_id_relative_source_is_that_of_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = request_of({"source.uri": "docs"})
    assert relative.run_id() == request_of({"source.uri": str(tmp_path / "docs")}).run_id()


def test_run_id_of_each_occasion_is_another():
    request = request_of()
    occasions = [{}, {"after": 0, "listing": "a"}, {"after": 1, "listing": "a"}]
    occasions += [{"after": 1, "listing": "b"}, {"replay": 1}, {"replay": 2}]
    ids = [request.run_id(**occasion) for occasion in occasions]
    assert len(set(ids)) == 6
    assert request.run_id(after=1, listing="a") == ids[2]


def test_request_differences_are_sorted_dotted_paths():
    other = request_of({"chunk.overlap": 1, "slice.documents": 2, "source.columns.text": "body"})
    assert request_of().differences(other.parts) == [
        "chunk.overlap",
        "slice.documents",
        "source.columns.text",
    ]


# What is left to do

ENCODER = EncoderRecord(
    **{"space_fingerprint": "f", "dim": 64, "colbert_dim": None, "max_length": 128},
    **{"pooling": "cls", "dtype": "float32", "device": "cpu", "worker": "host:1"},
)


def unit_with(documents, number=0):
    file = SourceFile("docs/a.parquet", 1000, "etag")
    piece = FileRange(file, "a.parquet", 0, documents, number, documents)
    return Unit(number, "parquet", (piece,), documents)


def done_of(unit, first, documents):
    return Done(
        run_id="run",
        nonce="nonce",
        unit=unit.number,
        first_document=first,
        documents=documents,
        last=first + documents == unit.documents,
        **dict.fromkeys(("embedded", "passages", "tokens"), documents),
        **dict.fromkeys(("part", "ledger", "reject_file")),
        truncated=0,
        rejects={},
        masked=[],
        encoder=ENCODER,
        seconds=0.1,
    )


WANTED = ((3, 4), (9, 11), (50, None))


@pytest.mark.parametrize(
    ("documents", "wanted", "slices", "todo"),
    [
        (100, None, [], [[0, None]]),
        (100, None, [(0, 40), (40, 40), (80, 20)], None),
        (100, None, [(0, 40)], [[40, None]]),
        (100, None, [(0, 40), (40, 40)], [[80, None]]),
        (100, None, [(40, 40), (80, 20)], [[0, 40]]),
        (100, None, [(80, 20)], [[0, 80]]),
        (100, None, [(40, 40)], [[0, 40], [80, None]]),
        (100, None, [(0, 40), (80, 20)], [[40, 80]]),
        (100, None, [(0, 10), (30, 10), (60, 10), (90, 10)], [[10, 30], [40, 60], [70, 90]]),
        (100, None, [(0, 100)], None),
        (100, WANTED, [], [[3, 4], [9, 11], [50, None]]),
        (100, WANTED, [(3, 1)], [[9, 11], [50, None]]),
        (100, WANTED, [(9, 1)], [[3, 4], [10, 11], [50, None]]),
        (100, WANTED, [(50, 20)], [[3, 4], [9, 11], [70, None]]),
        (100, WANTED, [(3, 1), (9, 2), (50, 50)], None),
        (0, None, [], [[0, None]]),  # an empty unit needs a record too
        (0, None, [(0, 0)], None),
    ],
)
def test_todo_table_is_what_has_no_done_record(documents, wanted, slices, todo):
    unit = unit_with(documents)
    unit = replace(unit, wanted=wanted) if wanted else unit
    assert unit.documents_wanted == (53 if wanted else documents)
    rows = todo_table([unit], [done_of(unit, *each) for each in slices]).to_pylist()
    assert (rows[0]["todo"] if rows else None) == todo


def unreadable(unit, first):
    return done_of(unit, first, 0).model_copy(update={"last": True, "unreadable": True})


def test_todo_table_what_could_not_be_read_is_left_but_complete():
    unit = unit_with(100)
    done = [done_of(unit, 0, 40), unreadable(unit, 40)]
    assert todo_table([unit], done)["todo"].to_pylist() == [[[40, None]]]
    assert incomplete_units([unit], done) == []
    assert incomplete_units([unit], done[:1]) == [0]


@pytest.mark.parametrize(
    ("good", "bad", "kept"),
    [
        ([0], [20], [20]),
        ([0, 20], [20], []),
        ([0, 20], [0], []),
        ([0, 20], [20, 40], [40]),
        ([], [0], [0]),
    ],
)
def test_read_done_drops_failures_that_were_read_beyond(tmp_path, good, bad, kept):
    store, unit = open_store(str(tmp_path)), unit_with(100)
    for first in bad:
        path = unreadable_path("run", 0, first)
        assert store.create_exclusive(path, unreadable(unit, first).to_bytes())
    for first in good:
        path = done_path("run", 0, first)
        assert store.create_exclusive(path, done_of(unit, first, 20).to_bytes())
    found = [(r.first_document, r.unreadable) for r in read_done(store, "run")]
    assert found == [(first, False) for first in good] + [(first, True) for first in kept]


def test_todo_table_holds_each_unit_with_something_left():
    units = [unit_with(n, number) for number, n in enumerate((10, 20, 0, 30, 5))]
    done = [
        done_of(units[0], 0, 10),
        done_of(units[1], 0, 5),
        done_of(units[2], 0, 0),
        done_of(units[4], 3, 2),
    ]
    table = todo_table(units, done)
    assert table.schema == TODO_SCHEMA
    assert table["unit"].to_pylist() == incomplete_units(units, done) == [1, 3, 4]
    assert table["todo"].to_pylist() == [[[5, None]], [[0, None]], [[0, 3]]]
    assert [unit_of(row) for row in table.to_pylist()] == [units[1], units[3], units[4]]
    finished = todo_table(units[:1], done[:1])
    assert (finished.num_rows, finished.schema) == (0, TODO_SCHEMA)


# Planning


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    for name, n in (("a", 10), ("b", 5)):
        write(folder / f"{name}.parquet", n)
    return folder


def write(path, n):
    columns = ("id", "text", "title", "url")
    pq.write_table(pa.table({c: [f"{c} {i}" for i in range(n)] for c in columns}), path, 4)


@pytest.fixture
def plan(corpus, make_config):
    """Plan a run over `corpus` as the pipeline does."""

    def make(**sections):
        config = make_config(corpus, **sections)
        store = open_store(config.index.uri)
        request = Request.of(config, resolve_model(config.encoder))
        source = Source(config.source)
        listing = source.list_files()

        def pin():
            return source.units(listing), listing.hash

        return plan_run(store, config, request, pin, listing.files, request.run_id())

    return make


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "index"))


def test_plan_run_pins_the_source_and_is_taken_up_again(plan, store, corpus):
    run = plan()
    assert [unit.documents for unit in run.units] == [4, 4, 2, 4, 1]
    assert [unit.number for unit in run.units] == [0, 1, 2, 3, 4]
    assert (run.plan.units, run.plan.documents, run.plan.parent) == (5, 15, None)
    assert load_plan(store, run.plan.run_id) == run.plan
    states = [(path, path.stat()) for path in sorted(corpus.iterdir())]
    files = [SourceFile(str(p), state.st_size, str(state.st_mtime_ns)) for p, state in states]
    assert run.plan.listing == Listing(files, "parquet", str(corpus)).hash
    stored = store.read(plan_path(run.plan.run_id))
    found = json.loads(stored)
    chunk = found["config"]["chunk"]
    assert (chunk["by"], chunk["max_tokens"], chunk["overlap"]) == ("tokens", 96, 8)
    assert (found["format_version"], found["request"]["slice"]["documents"]) == (1, 20)
    assert plan() == plan(ray={"actors": 3}) == run
    assert store.read(plan_path(run.plan.run_id)) == stored
    other = plan(chunk={"max_tokens": 50})
    assert (other.plan.run_id != run.plan.run_id, other.units) == (True, run.units)
    assert load_plan(store, "0123456789abcdef") is None


def test_plan_run_after_a_crash_before_the_plan_goes_on_with_what_was_pinned(
    plan, store, corpus, tmp_path
):
    first = plan()
    units = store.read(units_path(first.plan.run_id))
    for added in (None, corpus / "c.parquet"):
        (tmp_path / "index" / plan_path(first.plan.run_id)).unlink()
        if added:  # else the next start would call a source committed that was never read whole
            write(added, 3)
        again = plan()
        assert again.units == first.units
        assert store.read(units_path(first.plan.run_id)) == units
        assert load_plan(store, first.plan.run_id) == again.plan
        assert again.plan.listing == first.plan.listing


@pytest.mark.parametrize("with_plan", [True, False])
def test_plan_run_changed_or_missing_file_is_refused_naming_it(plan, corpus, tmp_path, with_plan):
    run = plan()
    if not with_plan:
        (tmp_path / "index" / plan_path(run.plan.run_id)).unlink()
    write(corpus / "b.parquet", 6)
    with pytest.raises(SourceChangedError, match=r"b\.parquet changed since") as caught:
        plan()
    assert "--fresh" in caught.value.remedy
    (corpus / "b.parquet").unlink()
    with pytest.raises(SourceChangedError, match=r"b\.parquet is gone since"):
        plan()


def test_plan_run_file_beyond_the_limit_may_change(plan, corpus):
    columns = {"title": "title", "metadata": ["url"]}
    source = {"uri": str(corpus), "columns": columns, "limit": 7}
    first = plan(source=source)
    assert [unit.documents for unit in first.units] == [4, 3]
    write(corpus / "b.parquet", 6)
    assert plan(source=source) == first


def test_plan_stores_no_secret(plan, store, corpus):
    options = {"auto_mkdir": "hush"}
    run = plan(source={"uri": str(corpus), "storage_options": options})
    assert b"hush" not in store.read(plan_path(run.plan.run_id))


# Which run a command starts


def test_next_task_on_an_empty_place_is_a_first_run_of_its_request(corpus, make_config):
    def next_task(*, fresh=False, replay=False, **sections):
        context = RunContext.of(make_config(corpus, **sections), Progress(silent()))
        return next_embed_task(context, fresh=fresh, replay=replay)

    task = next_task()
    assert isinstance(task, Task)
    assert task.parent is None
    units, listing = task.pin()
    assert [unit.documents for unit in units] == [4, 4, 2, 4, 1]
    assert len(listing) == 32
    again, fresh, other = next_task(), next_task(fresh=True), next_task(chunk={"max_tokens": 50})
    assert again.run_id == task.run_id
    assert len({task.run_id, fresh.run_id, other.run_id}) == 3
    with pytest.raises(IndexStateError, match=r"expected a committed index whose rejects"):
        next_task(replay=True)
    with pytest.raises(ConfigError, match="expected one of them, got both"):
        next_task(fresh=True, replay=True)
