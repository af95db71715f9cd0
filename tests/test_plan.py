"""Plans: what makes a run the same run, and what of it is left to do."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.errors import SourceChangedError
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
from pipelines.source import Source, Unit
from pipelines.source.units import FileRange, Listing, SourceFile
from pipelines.store import open_store

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


def run_id(request):
    return request.run_id()


# The request


@pytest.mark.parametrize(
    "changes",
    [
        {"ray.actors": 3, "ray.gpus_per_actor": 0.5, "ray.address": "ray://head:10001"},
        {"ray.cpus_per_actor": 4, "ray.slices_per_actor": 5},
        {"model.dtype": "float32"},
        {"model.device": "cpu"},
        {"model.max_batch_tokens": 512},
        {"source.storage_options": {"key": "k", "secret": "s"}},
        {"index.storage_options": {"key": "k", "secret": "s"}},
        {"index.uri": "s3://another/index"},
        {"outputs": ["sparse", "dense"]},
        {"chunk.by": "tokens", "source.columns.id": "id", "source.limit": None},
        {"slice.max_tokens": 1_048_576, "slice.documents": 1000},
        {"model.query_max_length": 128},
    ],
    ids=str,
)
def test_run_id_of_the_same_result_is_equal(changes):
    assert run_id(request_of(changes)) == run_id(request_of())
    assert request_of(changes).differences(request_of().parts) == []


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("chunk.max_tokens", 95, "chunk.max_tokens"),
        ("chunk.overlap", 9, "chunk.overlap"),
        ("chunk.by", "none", "chunk.by"),
        ("outputs", ["dense"], "outputs"),
        ("source.uri", "s3://docs/other", "source.uri"),
        ("source.limit", 5, "source.limit"),
        ("source.columns.id", "key", "source.columns.id"),
        ("source.columns.text", "body", "source.columns.text"),
        ("source.columns.title", None, "source.columns.title"),
        ("source.columns.metadata", [], "source.columns.metadata"),
        ("model.max_length", 127, "model.max_length"),
        ("model.pooling", "mean", "model.pooling"),
        ("model.normalize", False, "model.normalize"),
        ("model.truncate_dim", 32, "model.truncate_dim"),
        ("model.query_instruction", "query: ", "model.prompts.query.before"),
        ("model.passage_instruction", "passage: ", "model.prompts.passage.before"),
        ("model.vector_dtype", "float32", "vector_dtype"),
        ("slice.documents", 7, "slice.documents"),
        ("slice.max_tokens", 7, "slice.max_tokens"),
        ("index.store_text", False, "index.store_text"),
        ("index.colbert_storage", "bytes", "index.colbert_storage"),
    ],
)
def test_run_id_of_another_result_differs(key, value, named):
    request, other = request_of(), request_of({key: value})
    assert run_id(request) != run_id(other)
    assert named in request.differences(other.parts)
    assert named in other.differences(request.parts)


def test_run_id_of_another_weight_differs(tmp_path):
    copies = [shutil.copytree(ensure_tiny_m3(), tmp_path / name) for name in ("same", "other")]
    with (copies[1] / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    same, other = (request_of({"model.name": str(folder)}) for folder in copies)
    assert run_id(same) == run_id(request_of())
    assert run_id(other) != run_id(request_of())
    assert same.differences(other.parts) == ["model.weights.model.safetensors"]
    assert same.space_fingerprint != other.space_fingerprint


def test_run_id_relative_source_is_that_of_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = request_of({"source.uri": "docs"})
    assert run_id(relative) == run_id(request_of({"source.uri": str(tmp_path / "docs")}))


def test_run_id_of_each_occasion_is_another():
    request = request_of()
    occasions = [{}, {"after": 0, "listing": "a"}, {"after": 1, "listing": "a"}]
    occasions += [{"after": 1, "listing": "b"}, {"replay": 1}, {"replay": 2}]
    ids = [request.run_id(**occasion) for occasion in occasions]
    assert len(set(ids)) == 6
    assert request.run_id(after=1, listing="a") == ids[2]


def test_request_read_back_from_json_does_not_differ():
    request = request_of()
    assert request.differences(json.loads(json.dumps(request.parts))) == []


def test_request_differences_are_sorted_dotted_paths():
    other = request_of({"chunk.overlap": 1, "slice.documents": 2, "source.columns.text": "body"})
    assert request_of().differences(other.parts) == [
        "chunk.overlap",
        "slice.documents",
        "source.columns.text",
    ]


@pytest.mark.parametrize(
    ("key", "value", "space", "index"),
    [
        ("source.uri", "s3://docs/other", True, True),
        ("source.limit", 3, True, True),
        ("slice.documents", 3, True, True),
        ("source.columns.title", None, True, False),
        ("chunk.overlap", 3, True, False),
        ("outputs", ["dense"], True, False),
        ("model.vector_dtype", "float32", True, False),
        ("index.colbert_storage", "bytes", True, False),
        ("model.normalize", False, False, False),
        ("model.passage_instruction", "passage: ", False, False),
    ],
)
def test_fingerprints_are_equal_where_they_should_be(key, value, space, index):
    request, other = request_of(), request_of({key: value})
    assert (request.space_fingerprint == other.space_fingerprint) == space
    assert (request.index_fingerprint == other.index_fingerprint) == index


# What is left to do

ENCODER = EncoderRecord(
    space_fingerprint="f",
    dim=64,
    colbert_dim=None,
    max_length=128,
    pooling="cls",
    dtype="float32",
    device="cpu",
    worker="host:1",
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
        embedded=documents,
        passages=documents,
        tokens=documents,
        truncated=0,
        rejects={},
        masked=[],
        part=None,
        ledger=None,
        reject_file=None,
        encoder=ENCODER,
        seconds=0.1,
    )


def left(unit, *slices):
    rows = todo_table([unit], [done_of(unit, *each) for each in slices]).to_pylist()
    return rows[0]["todo"] if rows else None


@pytest.mark.parametrize(
    ("slices", "todo"),
    [
        ([], [[0, None]]),
        ([(0, 40), (40, 40), (80, 20)], None),
        ([(0, 40)], [[40, None]]),
        ([(0, 40), (40, 40)], [[80, None]]),
        ([(40, 40), (80, 20)], [[0, 40]]),
        ([(80, 20)], [[0, 80]]),
        ([(40, 40)], [[0, 40], [80, None]]),
        ([(0, 40), (80, 20)], [[40, 80]]),
        ([(0, 10), (30, 10), (60, 10), (90, 10)], [[10, 30], [40, 60], [70, 90]]),
        ([(0, 100)], None),
    ],
)
def test_todo_table_is_what_has_no_done_record(slices, todo):
    assert left(unit_with(100), *slices) == todo


@pytest.mark.parametrize(
    ("slices", "todo"),
    [
        ([], [[3, 4], [9, 11], [50, None]]),
        ([(3, 1)], [[9, 11], [50, None]]),
        ([(9, 1)], [[3, 4], [10, 11], [50, None]]),
        ([(50, 20)], [[3, 4], [9, 11], [70, None]]),
        ([(3, 1), (9, 2), (50, 50)], None),
    ],
)
def test_todo_table_of_a_unit_wanted_in_part_is_what_is_missing_of_it(slices, todo):
    unit = replace(unit_with(100), wanted=((3, 4), (9, 11), (50, None)))
    assert left(unit, *slices) == todo
    assert unit.documents_wanted == 53


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


@pytest.mark.parametrize(("slices", "todo"), [([], [[0, None]]), ([(0, 0)], None)])
def test_todo_table_empty_unit_needs_a_record_too(slices, todo):
    assert left(unit_with(0), *slices) == todo


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


def test_todo_table_of_a_finished_run_is_empty():
    units = [unit_with(10), unit_with(5, 1)]
    table = todo_table(units, [done_of(units[0], 0, 10), done_of(units[1], 0, 5)])
    assert table.num_rows == 0
    assert table.schema == TODO_SCHEMA


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

        return plan_run(store, config, request, pin, listing.files, run_id(request))

    return make


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "index"))


def test_plan_run_pins_the_source(plan, store, corpus):
    run = plan()
    assert [unit.documents for unit in run.units] == [4, 4, 2, 4, 1]
    assert [unit.number for unit in run.units] == [0, 1, 2, 3, 4]
    assert (run.plan.units, run.plan.documents, run.plan.parent) == (5, 15, None)
    assert load_plan(store, run.plan.run_id) == run.plan
    files = [
        SourceFile(str(p), p.stat().st_size, str(p.stat().st_mtime_ns))
        for p in sorted(corpus.iterdir())
    ]
    assert run.plan.listing == Listing(files, "parquet", str(corpus)).hash


def test_plan_run_stores_request_and_configuration(plan, store):
    run = plan()
    stored = json.loads(store.read(plan_path(run.plan.run_id)))
    assert stored["format_version"] == 1
    chunk = stored["config"]["chunk"]
    assert (chunk["by"], chunk["max_tokens"], chunk["overlap"]) == ("tokens", 96, 8)
    assert stored["request"]["slice"]["documents"] == 20


def test_plan_run_again_takes_up_the_first(plan, store):
    first = plan()
    before = store.read(plan_path(first.plan.run_id))
    assert plan() == first
    assert plan(ray={"actors": 3}) == first
    assert store.read(plan_path(first.plan.run_id)) == before


def test_plan_run_after_a_crash_before_the_plan_goes_on(plan, store, tmp_path):
    first = plan()
    (tmp_path / "index" / plan_path(first.plan.run_id)).unlink()
    units = store.read(units_path(first.plan.run_id))
    again = plan()
    assert again.units == first.units
    assert store.read(units_path(first.plan.run_id)) == units
    assert load_plan(store, first.plan.run_id) == again.plan
    assert again.plan.listing == first.plan.listing


def test_plan_run_after_a_crash_counts_no_file_in_that_was_not_pinned(plan, corpus, tmp_path):
    """Else the next start would call a source committed of which one file was never read."""
    first = plan()
    (tmp_path / "index" / plan_path(first.plan.run_id)).unlink()
    write(corpus / "c.parquet", 3)
    try:
        again = plan()
    except SourceChangedError:
        return
    assert again.plan.listing == first.plan.listing


@pytest.mark.parametrize("with_plan", [True, False])
def test_plan_run_changed_file_raises(plan, corpus, tmp_path, with_plan):
    run = plan()
    if not with_plan:
        (tmp_path / "index" / plan_path(run.plan.run_id)).unlink()
    write(corpus / "b.parquet", 6)
    with pytest.raises(SourceChangedError, match=r"b\.parquet changed since") as caught:
        plan()
    assert "--fresh" in caught.value.remedy


def test_plan_run_missing_file_raises(plan, corpus):
    plan()
    (corpus / "a.parquet").unlink()
    with pytest.raises(SourceChangedError, match=r"a\.parquet is gone since"):
        plan()


def test_plan_run_file_beyond_the_limit_may_change(plan, corpus):
    columns = {"title": "title", "metadata": ["url"]}
    source = {"uri": str(corpus), "columns": columns, "limit": 7}
    first = plan(source=source)
    assert [unit.documents for unit in first.units] == [4, 3]
    write(corpus / "b.parquet", 6)
    assert plan(source=source) == first


def test_plan_run_of_another_request_is_another_plan(plan):
    first, second = plan(), plan(chunk={"max_tokens": 50})
    assert first.plan.run_id != second.plan.run_id
    assert first.units == second.units


def test_load_plan_absent_is_none(store):
    assert load_plan(store, "0123456789abcdef") is None


def test_plan_stores_no_secret(plan, store, corpus):
    options = {"auto_mkdir": "hush"}
    run = plan(source={"uri": str(corpus), "storage_options": options})
    assert b"hush" not in store.read(plan_path(run.plan.run_id))
