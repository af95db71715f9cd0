"""A source file that is replaced or vanishes while it is read: named, stopped, nothing mixed."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
from reading import place, source_of  # noqa: F401
from test_any_format import as_jsonl, as_parquet

from actors.errors import SourceChangedError
from pipelines.embed_corpus import embed_corpus
from pipelines.index import open_index
from pipelines.index.generations import live_generation
from pipelines.run import runner
from pipelines.store import open_store
from pipelines.terminal.cli import find_cause

N = 400  # several batches
ENCODE = {"a.jsonl": as_jsonl, "a.parquet": partial(as_parquet, row_group_size=N)}


def content(name, word):
    return ENCODE[name]([{"id": f"d{i}", "text": f"{word} {i}"} for i in range(N)])


def reader_of(uri, **how):
    """A function that gives the batches of the only unit, as it is now."""
    source = source_of(uri, **how)
    [unit] = source.units(source.list_files())
    return lambda: source.read(unit)


def old_until_the_change(batches, change=r"a\.(jsonl|parquet)"):
    """How many documents come, all of them of the old file, until the change is noticed."""
    texts = []
    with pytest.raises(SourceChangedError, match=change) as caught:
        texts.extend(text for b in batches for text in b.table["text"].to_pylist())
    assert "--fresh" in caught.value.remedy
    assert caught.value.exit_code == 1
    assert all(text.startswith("old ") for text in texts)
    return len(texts)


@pytest.mark.parametrize("name", ENCODE)
@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_read_file_that_changes_gives_nothing_of_the_new_one(place, request, name, change):  # noqa: F811
    """Whoever is in the middle of reading, and who begins to read afterwards."""
    uri, options, put = place
    if "http-bare" in request.node.callspec.id:
        pytest.skip("a server that tells neither size nor time cannot be asked for changes")
    put(name, content(name, "old"))
    read = reader_of(f"{uri}/{name}", storage_options=options)
    batches = read()
    next(batches)
    if change == "replaced":  # by one of another size: HTTP tells no more than whole seconds
        put(name, content(name, "newer"))
    elif options:
        fsspec.filesystem("s3", **options).rm_file(f"{uri}/{name}")
    else:
        (request.getfixturevalue("tmp_path") / "docs" / name).unlink()
    assert old_until_the_change(batches) < N
    said = "changed since" if change == "replaced" else "expected the file the plan pinned"
    assert old_until_the_change(read(), rf"{name}: {said}") == 0


def test_read_file_replaced_by_another_of_its_size_gives_nothing_of_it(tmp_path):
    for name in ENCODE:
        path = tmp_path / name
        path.write_bytes(content(name, "old"))
        read = reader_of(path)
        batches = read()
        next(batches)
        path.write_bytes(content(name, "new"))
        assert old_until_the_change(batches) == old_until_the_change(read()) == 0


def test_read_file_removed_after_its_last_batch_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content(path.name, "old")[:3000])
    batches = reader_of(path)()
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
    plan_run = runner.plan_run

    def plan_then_change(*args, **how):
        run = plan_run(*args, **how)
        path.unlink()
        if change == "replaced":
            pq.write_table(articles.slice(20, 20), path)
        return run

    monkeypatch.setattr(runner, "plan_run", plan_then_change)
    with pytest.raises(Exception, match=r"a\.parquet") as caught:
        embed_corpus(config)
    assert isinstance(find_cause(caught.value), SourceChangedError)
    assert live_generation(open_store(config.index.uri)) is None
    assert not list(Path(config.index.uri).glob("runs/*/done/*"))
    monkeypatch.undo()
    shutil.copy2(kept, path)
    assert embed_corpus(config).counts.documents == 20
    live = open_index(config.index.uri).documents()
    assert sorted(live["doc_id"].to_pylist()) == sorted(articles["id"].slice(0, 20).to_pylist())
