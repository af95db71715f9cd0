"""A source file that is replaced or vanishes while it is read: named, stopped, nothing mixed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import place, source_of  # noqa: F401

from actors.errors import SourceChangedError
from pipelines.embed_corpus import embed_corpus
from pipelines.index import open_index
from pipelines.index.generations import live_generation
from pipelines.run import runner as module
from pipelines.store import open_store
from pipelines.terminal.cli import find_cause

N = 400  # several batches


def lines(word):
    return b"".join(
        json.dumps({"id": f"d{i}", "text": f"{word} {i}"}).encode() + b"\n" for i in range(N)
    )


def parquet(word):
    sink = pa.BufferOutputStream()
    table = pa.table({"id": [f"d{i}" for i in range(N)], "text": [f"{word} {i}" for i in range(N)]})
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


CONTENTS = {"a.jsonl": lines, "a.parquet": parquet}


@pytest.fixture(params=CONTENTS)
def source_file(request, place, tmp_path):  # noqa: F811
    """(a function that gives the batches of the only unit, one that replaces the file, remove)."""
    uri, options, put = place
    name, content = request.param, CONTENTS[request.param]
    put(name, content("old"))
    source = source_of(f"{uri}/{name}", storage_options=options)
    [unit] = source.units(source.list_files())

    def replace():
        put(name, content("newer"))  # of another size: HTTP tells no more than whole seconds

    def remove():
        if uri.startswith("s3://"):
            fsspec.filesystem("s3", **options).rm_file(f"{uri}/{name}")
        else:
            (tmp_path / "docs" / name).unlink()

    return lambda: source.read(unit), replace, remove


def old_until_the_change(batches):
    """How many documents come, all of them of the old file, until the change is noticed."""
    texts = []
    with pytest.raises(SourceChangedError, match=r"a\.(jsonl|parquet)") as caught:
        texts.extend(text for b in batches for text in b.table["text"].to_pylist())
    assert "--fresh" in caught.value.remedy
    assert caught.value.exit_code == 1
    assert all(text.startswith("old ") for text in texts)
    return len(texts)


@pytest.fixture
def _tells_versions(request):
    """A server that tells neither size nor time of a file cannot be asked whether it changed."""
    if "http-bare" in request.node.callspec.id:
        pytest.skip("nothing to tell a change by")


def assert_noticed(read, change):
    """In the middle of reading, and by who begins to read afterwards."""
    batches = read()
    next(batches)
    change()
    assert old_until_the_change(batches) < N
    assert old_until_the_change(read()) == 0


@pytest.mark.usefixtures("_tells_versions")
def test_read_file_replaced_gives_nothing_of_the_new_one(source_file):
    read, replace, _ = source_file
    assert_noticed(read, replace)


def test_read_file_replaced_in_the_middle_by_another_of_its_size_gives_nothing_of_it(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("old"))
    source = source_of(path)
    [unit] = source.units(source.list_files())
    batches = source.read(unit)
    next(batches)
    path.write_bytes(lines("new"))
    assert old_until_the_change(batches) == 0


def test_read_file_removed_is_named(source_file):
    read, _, remove = source_file
    assert_noticed(read, remove)


def test_read_file_removed_after_its_last_batch_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("old")[:5000])
    source = source_of(path)
    [unit] = source.units(source.list_files())
    batches = source.read(unit)
    next(batches)
    path.unlink()
    assert old_until_the_change(batches) == 0


# On Ray an error arrives wrapped; that is the same for both.
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("change", "engine"), [("replaced", "ray"), ("removed", "in_process")])
def test_run_whose_file_changes_after_planning_stops_and_goes_on_once_it_is_restored(
    tmp_path, make_config, monkeypatch, articles, change, engine
):
    path, kept = tmp_path / "docs/a.parquet", tmp_path / "kept"
    path.parent.mkdir()
    pq.write_table(articles.slice(0, 20), path)
    shutil.copy2(path, kept)
    config = make_config(path.parent, outputs=["dense"], ray={"engine": engine})
    plan_run = module.plan_run

    def plan_then_change(*args, **how):
        run = plan_run(*args, **how)
        path.unlink()
        if change == "replaced":
            pq.write_table(articles.slice(20, 20), path)
        return run

    monkeypatch.setattr(module, "plan_run", plan_then_change)
    with pytest.raises(Exception, match=r"a\.parquet") as caught:
        embed_corpus(config)
    cause = find_cause(caught.value)
    assert isinstance(cause, SourceChangedError)
    store = open_store(config.index.uri)
    assert live_generation(store) is None
    assert not list(Path(config.index.uri).glob("runs/*/done/*"))
    monkeypatch.undo()
    shutil.copy2(kept, path)
    assert embed_corpus(config).counts.documents == 20
    live = open_index(config.index.uri).documents()
    assert sorted(live["doc_id"].to_pylist()) == sorted(articles["id"].slice(0, 20).to_pylist())
