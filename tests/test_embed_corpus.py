"""End to end, over a real local Ray cluster with faked GPUs: the production plan."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray.data
from conftest import ROOT, config_for
from rich.console import Console
from test_metrics import scraped, values

from actors.encoder import load_encoder
from actors.errors import EmbedError, IndexStateError, SourceChangedError
from pipelines.cluster.ray_cluster import pool_for
from pipelines.config import RunConfig
from pipelines.embed_corpus import embed_corpus
from pipelines.index import open_index
from pipelines.index.layout import publication_path
from pipelines.index.lease import hold_lease
from pipelines.index.records import Done, Manifest
from pipelines.plan.plan import PlannedRun, plan_run, read_done, todo_table
from pipelines.run.context import RunContext
from pipelines.run.engine import EncodeJob
from pipelines.run.on_ray import receipts
from pipelines.run.runner import run_next
from pipelines.run.tasks import Task, next_embed_task
from pipelines.store import open_store
from pipelines.terminal.cli import Log, silent
from pipelines.terminal.progress import Progress


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, articles: pa.Table) -> Path:
    """90 articles in two files of two row groups each."""
    folder = tmp_path_factory.mktemp("corpus")
    pq.write_table(articles.slice(0, 50), folder / "a.parquet", row_group_size=30)
    pq.write_table(articles.slice(50, 40), folder / "b.parquet", row_group_size=30)
    return folder


def files_of(index: Path, manifest: Manifest, table: str) -> pa.Table:
    return pq.read_table(index / getattr(manifest.tables, table).path)


def rows_of(index: Path, manifest: Manifest) -> pa.Table:
    """All rows of all parts, read without this project's reader."""
    paths = files_of(index, manifest, "parts")["path"].to_pylist()
    return pa.concat_tables([pq.read_table(index / path) for path in paths])


@pytest.fixture(scope="module")
def indexed(
    source: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> tuple[Path, Manifest, Any]:
    """One committed index that several tests look at."""
    index = tmp_path_factory.mktemp("indexed")
    config = config_for(source, index={"uri": str(index)}, ray={"engine": "ray"})
    return index, embed_corpus(config), config


def test_index_of_articles_holds_every_document_once(
    indexed: tuple[Path, Manifest, Any], articles: pa.Table
) -> None:
    index, manifest, _ = indexed
    rows = rows_of(index, manifest)
    assert set(rows["doc_id"].to_pylist()) == set(articles["id"].slice(0, 90).to_pylist())
    assert rows["passage_id"].value_counts().field("counts").to_pylist() == [1] * rows.num_rows
    assert manifest.counts.rejects == {}


def test_manifest_counts_equal_what_the_files_hold(indexed: tuple[Path, Manifest, Any]) -> None:
    index, manifest, _ = indexed
    rows = rows_of(index, manifest)
    assert manifest.counts.documents == 90
    assert manifest.counts.passages == manifest.counts.encoded == rows.num_rows
    assert manifest.counts.tokens == pc.sum(rows["n_tokens"]).as_py()
    for table in ("parts", "documents"):
        record = getattr(manifest.tables, table)
        assert hashlib.sha256((index / record.path).read_bytes()).hexdigest() == record.sha256
        for file in files_of(index, manifest, table).to_pylist():
            data = (index / file["path"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])
            assert pq.read_metadata(index / file["path"]).num_rows == file["rows"]


def test_ledger_row_ranges_point_at_the_documents_rows(
    indexed: tuple[Path, Manifest, Any],
) -> None:
    index, _, _ = indexed
    ledger = open_index(str(index)).documents().to_pylist()
    assert len(ledger) == 90
    for entry in ledger:
        rows = pq.read_table(index / entry["part"]).slice(entry["first_row"], entry["n_rows"])
        assert set(rows["doc_id"].to_pylist()) == {entry["doc_id"]}
        assert rows["passage_no"].to_pylist() == list(range(entry["n_rows"]))
        assert pc.sum(rows["n_tokens"]).as_py() == entry["n_tokens"]


def test_index_columns_have_the_types_of_the_contract(indexed: tuple[Path, Manifest, Any]) -> None:
    index, manifest, _ = indexed
    vector = pa.list_(pa.float16(), 64)
    expected = {
        "doc_id": pa.string(),
        "passage_id": pa.string(),
        "passage_no": pa.int32(),
        "text": pa.string(),
        "title": pa.string(),
        "n_tokens": pa.int32(),
        "truncated": pa.bool_(),
        "char_start": pa.int32(),
        "char_end": pa.int32(),
        "passage_hash": pa.binary(16),
        "url": pa.string(),
        "dense": vector,
        "sparse": pa.struct(
            [("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))]
        ),
        "colbert": pa.list_(vector),
    }
    schema = rows_of(index, manifest).schema
    assert schema.names == list(expected)
    for name, kind in expected.items():
        # Arrow compares names of list items too; Parquet calls them "element".
        assert str(schema.field(name).type).replace("element", "item") == str(kind), name


def test_colbert_has_a_vector_for_every_token_but_the_first(
    indexed: tuple[Path, Manifest, Any],
) -> None:
    rows = rows_of(*indexed[:2])
    lengths = pc.list_value_length(rows["colbert"]).to_numpy()
    np.testing.assert_array_equal(lengths, rows["n_tokens"].to_numpy() - 1)


def test_stored_vectors_equal_those_of_the_text_encoded_alone(
    indexed: tuple[Path, Manifest, Any],
) -> None:
    rows = rows_of(*indexed[:2])
    encoder = load_encoder(indexed[2].encoder)
    # In half precision, where the CPU has it, neighbours in a batch move the last bits.
    absolute, relative = (1e-3, 1e-4) if encoder.info.dtype == "float32" else (5e-3, 2e-2)
    for row in rows.slice(0, 120).to_pylist()[::12]:
        alone = encoder.encode_passages([row["text"]]).to_pylist()[0]
        np.testing.assert_allclose(row["dense"], alone["dense"], atol=absolute)
        np.testing.assert_allclose(row["colbert"], alone["colbert"], atol=absolute)
        ours, theirs = (
            dict(zip(each["sparse"]["indices"], each["sparse"]["values"], strict=True))
            for each in (row, alone)
        )
        assert ours == pytest.approx(theirs, rel=relative)


def test_passage_text_is_the_documents_characters(
    indexed: tuple[Path, Manifest, Any], articles: pa.Table
) -> None:
    texts = dict(zip(articles["id"].to_pylist(), articles["text"].to_pylist(), strict=True))
    for row in rows_of(*indexed[:2]).to_pylist():
        assert row["text"] == texts[row["doc_id"]][row["char_start"] : row["char_end"]]


def test_parts_are_read_by_duckdb_and_polars(indexed: tuple[Path, Manifest, Any]) -> None:
    index, manifest, _ = indexed
    glob = str(index / "data" / manifest.run_id / "*.parquet")
    count, dim = duckdb.sql(
        f"select count(*), max(len(dense)) from read_parquet('{glob}')"
    ).fetchall()[0]
    assert (count, dim) == (manifest.counts.passages, 64)
    frame = pl.read_parquet(glob)
    assert frame.height == manifest.counts.passages
    assert frame["dense"].dtype == pl.Array(pl.Float16, 64)


def test_same_command_again_changes_nothing_and_says_so(
    indexed: tuple[Path, Manifest, Any],
) -> None:
    index, manifest, config = indexed
    before = sorted(path for path in index.rglob("*") if path.is_file())
    console = Console(file=io.StringIO())
    assert embed_corpus(config, progress=Progress(Log(console))) == manifest
    assert console.file.getvalue() == f"already committed: generation 1 of {index}\n"
    assert sorted(path for path in index.rglob("*") if path.is_file()) == before


def test_another_request_over_a_committed_index_is_refused_naming_the_difference(
    indexed: tuple[Path, Manifest, Any], source: Path
) -> None:
    index = indexed[0]
    changed = config_for(source, index={"uri": str(index)}, chunk={"max_tokens": 64})
    with pytest.raises(IndexStateError, match=r"chunk\.max_tokens"):
        embed_corpus(changed)


def test_index_reader_gives_the_same_rows_as_the_parts(indexed: tuple[Path, Manifest, Any]) -> None:
    rows = rows_of(*indexed[:2]).sort_by("passage_id")
    index = open_index(str(indexed[0]))
    assert index.info == indexed[1]
    columns = ["passage_id", "dense", "colbert"]
    for table in (
        index.to_table(columns),
        index.scanner(columns).to_table(),
        pa.concat_tables(list(index.to_ray(columns).iter_batches(batch_format="pyarrow"))),
    ):
        assert table.sort_by("passage_id").to_pydict() == rows.select(columns).to_pydict()


def test_plan_with_gpus_tokenises_outside_the_two_encoder_actors(
    source: Path, make_config: Any, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    # On a busy machine the first actor would have done everything before the second is there.
    monkeypatch.setattr(ray.data.DataContext.get_current(), "wait_for_min_actors_s", 120)
    config = make_config(source, slice={"documents": 4}, ray={"slices_per_actor": 1, "actors": 2})
    context, run = _planned(config)
    todo, pool = todo_table(run.units, []), pool_for(config.ray)
    dataset = receipts(_job(context, run), todo, pool)
    done = [Done.model_validate_json(row["done"]) for row in dataset.iter_rows()]
    plan = dataset.stats()
    assert "MapBatches(read_rows)" in plan
    assert "MapBatches(EncodingActor)" in plan
    assert "read_rows)->" not in plan.replace(" ", "")  # fused, it would be one operator
    assert len(done) == sum(-(-unit.documents // 4) for unit in run.units)
    assert len({record.encoder.worker for record in done}) == 2
    assert sum(record.documents for record in done) == 90


def _planned(config: Any) -> tuple[RunContext, PlannedRun]:
    """A run as a driver leaves it that dies after planning."""
    context = RunContext.of(config, Progress(silent()))
    task = next_embed_task(context, fresh=False, replay=False)
    assert isinstance(task, Task)
    files, store = context.listing.files, context.store
    return context, plan_run(store, config, context.request, task.pin, files, task.run_id)


def _job(context: RunContext, run: PlannedRun) -> EncodeJob:
    return EncodeJob(context.config, run.plan.run_id, "attempt", context.request.space_fingerprint)


def test_interrupted_run_goes_on_without_doing_slices_again(
    source: Path, make_config: Any, ray_cluster: None
) -> None:
    config = make_config(source, slice={"documents": 7})
    context, run = _planned(config)
    store, run_id = context.store, run.plan.run_id
    todo, pool = todo_table(run.units, []), pool_for(config.ray)
    for _ in receipts(_job(context, run), todo.slice(0, 2), pool).iter_rows():
        pass  # two of the four units are done when the driver "dies"
    before = read_done(store, run_id)
    assert 0 < sum(record.documents for record in before) < 90
    manifest = embed_corpus(config)
    after = {(r.unit, r.first_document): r for r in read_done(store, run_id)}
    assert all(after[r.unit, r.first_document] == r for r in before)
    assert manifest.counts.documents == 90


def test_run_that_died_before_publishing_is_published_by_the_next(
    source: Path, make_config: Any
) -> None:
    config = make_config(source, source={"limit": 10})
    manifest = embed_corpus(config)
    Path(config.index.uri, publication_path(1)).unlink()
    assert embed_corpus(config) == manifest
    assert open_index(config.index.uri).info == manifest


def test_limit_takes_the_first_documents_in_plan_order(
    source: Path, make_config: Any, articles: pa.Table
) -> None:
    config = make_config(source, source={"limit": 55}, outputs=["dense"])
    embed_corpus(config)
    ids = set(open_index(config.index.uri).to_table(["doc_id"])["doc_id"].to_pylist())
    assert ids == set(articles["id"].slice(0, 55).to_pylist())


def test_bad_rows_become_rejects_and_their_neighbours_are_embedded(
    tmp_path: Path, make_config: Any, articles: pa.Table
) -> None:
    good = articles.slice(0, 30).to_pylist()
    bad = [
        {"id": "null", "url": None, "title": None, "text": None},
        {"id": "blank", "url": None, "title": None, "text": " \n\t "},
        {"id": None, "url": None, "title": None, "text": "no id"},
        good[3] | {"text": "the same id in another slice"},
        {"id": "twin", "url": None, "title": None, "text": "first twin"},
        {"id": "twin", "url": None, "title": None, "text": "second twin, in the same slice"},
        {"id": "bytes", "url": None, "title": None, "text": "x"},
    ]
    corpus = tmp_path / "bad.parquet"
    table = pa.Table.from_pylist(good + bad, articles.schema)
    texts = pa.array([*table["text"].to_pylist()[:-1], b"caf\xe9"], pa.binary())
    table = table.set_column(3, "text", texts.view(pa.string()))  # Latin-1 in a string column
    pq.write_table(table, corpus, row_group_size=12)
    config = make_config(corpus, slice={"documents": 12})
    with pytest.raises(EmbedError, match=r"6 of 37 .*max_reject_fraction.*=0\.17"):
        embed_corpus(config)  # more than 1 %: not committed, and nothing lost
    context, run = _planned(config)
    store = context.store
    before = len(read_done(store, run.plan.run_id))
    manifest = embed_corpus(config.model_copy(update={"max_reject_fraction": 0.17}))
    assert len(read_done(store, manifest.run_id)) == before
    index = open_index(config.index.uri)
    rejected = {(r["position"] + 12 * r["unit"], r["code"]) for r in index.rejects().to_pylist()}
    assert rejected == {
        (30, "null_text"),
        (31, "empty_text"),
        (32, "missing_id"),
        (33, "duplicate_id"),
        (35, "duplicate_id"),
        (36, "bad_encoding"),
    }
    assert manifest.counts.rejects == {
        "null_text": 1,
        "empty_text": 1,
        "missing_id": 1,
        "duplicate_id": 2,
        "bad_encoding": 1,
    }
    live = index.to_table(["doc_id", "text", "n_tokens"]).to_pylist()
    assert {row["doc_id"] for row in live} == {row["id"] for row in good} | {"twin"}
    assert not any("another slice" in row["text"] or "second" in row["text"] for row in live)
    assert manifest.counts.passages == len(live)
    assert manifest.counts.tokens == sum(row["n_tokens"] for row in live)
    assert manifest.counts.documents == 31


def test_changed_file_stops_a_resumed_run_and_fresh_starts_over(
    tmp_path: Path, make_config: Any, articles: pa.Table
) -> None:
    corpus = tmp_path / "corpus.parquet"
    pq.write_table(articles.slice(0, 20), corpus)
    config = make_config(corpus)
    _planned(config)
    pq.write_table(articles.slice(0, 25), corpus)
    with pytest.raises(SourceChangedError, match="--fresh"):
        embed_corpus(config)
    manifest = embed_corpus(config, fresh=True)
    assert manifest.counts.documents == 25
    assert embed_corpus(config) == manifest  # the same request, whichever run answered it


def test_index_held_by_a_living_run_is_refused(source: Path, make_config: Any) -> None:
    config = make_config(source)
    with (
        hold_lease(open_store(config.index.uri), "other"),
        pytest.raises(IndexStateError, match="other"),
    ):
        embed_corpus(config)


def test_colbert_as_bytes_reads_as_the_same_numbers(source: Path, make_config: Any) -> None:
    tables = []
    for storage in ("values", "bytes"):
        config = make_config(source, source={"limit": 12})
        uri = f"{config.index.uri}-{storage}"
        config = make_config(
            source, source={"limit": 12}, index={"uri": uri, "colbert_storage": storage}
        )
        manifest = embed_corpus(config)
        assert manifest.colbert_storage == storage
        tables.append(open_index(uri).to_table(["passage_id", "colbert"]).sort_by("passage_id"))
    assert tables[0].to_pydict() == tables[1].to_pydict()


def test_run_over_s3_equals_the_local_one(
    indexed: tuple[Path, Manifest, Any],
    source: Path,
    s3_bucket: tuple[str, dict[str, Any]],
    make_config: Any,
) -> None:
    bucket, options = s3_bucket
    remote = open_store(bucket, options)
    for file in sorted(source.iterdir()):
        remote.upload(file, f"corpus/{file.name}")
    config = make_config(
        f"{bucket}/corpus",
        source={"storage_options": options},
        index={"uri": f"{bucket}/index", "storage_options": options},
    )
    manifest = embed_corpus(config)
    assert embed_corpus(config) == manifest
    assert manifest.counts == indexed[1].counts
    index = open_index(f"{bucket}/index", options)
    local = open_index(str(indexed[0]))
    columns = ["passage_id", "dense"]
    ours, theirs = (i.to_table(columns).sort_by("passage_id").to_pydict() for i in (index, local))
    assert ours["passage_id"] == theirs["passage_id"]
    np.testing.assert_allclose(ours["dense"], theirs["dense"], atol=1e-3)
    stored = json.loads(remote.read(f"index/runs/{manifest.run_id}/plan.json"))
    assert "testing" not in json.dumps(stored["config"])  # the key and the secret


def test_scanner_that_is_not_read_to_its_end_lets_the_interpreter_exit(
    indexed: tuple[Path, Manifest, Any],
) -> None:
    code = (
        "from pipelines.index import open_index; import sys; "
        "print(open_index(sys.argv[1]).scanner(['doc_id']).head(2).num_rows)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(indexed[0])], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout.strip()) == (0, "2"), result.stderr


def test_run_that_waited_for_the_lease_sees_what_was_committed_meanwhile(
    source: Path, make_config: Any
) -> None:
    """Another run commits between this one's first look and its lease."""
    config = make_config(source, source={"limit": 10}, outputs=["dense"])
    other = make_config(source, source={"limit": 10}, outputs=["sparse"])
    manifests: list[Manifest] = []

    def commits_between(run: RunConfig) -> Manifest:
        context = RunContext.of(run, Progress(silent()))

        def next_task() -> Task | Manifest:
            task = next_embed_task(context, fresh=False, replay=False)
            if not manifests:  # before this run has the lease
                manifests.append(embed_corpus(config))
            return task

        return run_next(context, next_task, context.progress.already_committed)

    assert commits_between(config) == manifests[0]
    manifests.clear()
    Path(config.index.uri).rename(f"{config.index.uri}-aside")
    with pytest.raises(IndexStateError, match="outputs"):
        commits_between(other)
    assert len(list(Path(config.index.uri, "generations").iterdir())) == 1


def test_fresh_run_that_died_before_publishing_is_published_by_the_next(
    source: Path, make_config: Any
) -> None:
    config = make_config(source, source={"limit": 10}, outputs=["dense"])
    first = embed_corpus(config)
    second = embed_corpus(config, fresh=True)
    assert (first.generation, second.generation) == (1, 2)
    Path(config.index.uri, publication_path(2)).unlink()
    for name in ("config.yaml", "report.json"):
        Path(config.index.uri, f"generations/000002/{name}").unlink()
    parts = sorted(Path(config.index.uri, "data").rglob("*.parquet"))
    assert embed_corpus(config, fresh=True) == second
    assert sorted(Path(config.index.uri, "data").rglob("*.parquet")) == parts
    assert open_index(config.index.uri).info == second
    assert Path(config.index.uri, "generations/000002/report.json").exists()


def test_index_whose_every_document_was_rejected_is_empty_with_its_columns(
    tmp_path: Path, make_config: Any
) -> None:
    corpus = tmp_path / "docs" / "blank.parquet"
    corpus.parent.mkdir()
    table = pa.table({"id": ["a"], "text": [" "], "title": ["t"], "url": ["u"]})
    pq.write_table(table, corpus)
    config = make_config(corpus).model_copy(update={"max_reject_fraction": 1.0})
    assert embed_corpus(config).counts.documents == 0
    index = open_index(config.index.uri)
    assert index.to_table(["doc_id", "dense"]).num_rows == 0
    assert index.documents()["doc_id"].to_pylist() == []
    assert index.rejects()["code"].to_pylist() == ["empty_text"]


def test_relative_paths_mean_the_drivers_directory_on_an_existing_cluster(
    tmp_path: Path, articles: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test's cluster was started elsewhere: its workers' current directory is another one."""
    monkeypatch.chdir(tmp_path)
    Path("docs").mkdir()
    pq.write_table(articles.slice(0, 5), "docs/a.parquet")
    config = config_for("docs", index={"uri": "index"})
    assert embed_corpus(config).counts.documents == 5
    assert open_index(str(tmp_path / "index")).to_table(["doc_id"]).num_rows >= 5


def test_report_and_summary_hold_the_runs_numbers(
    source: Path, make_config: Any, ray_cluster: None
) -> None:
    config = make_config(source, source={"limit": 25}, slice={"documents": 10})
    console = Console(file=io.StringIO())
    manifest = embed_corpus(config, progress=Progress(Log(console, "json")))
    index, counts = Path(config.index.uri), manifest.counts
    report = json.loads((index / "generations/000001/report.json").read_text())
    assert report["counts"] == counts.model_dump()
    assert report["bytes"] == sum(path.stat().st_size for path in index.glob("data/*/*"))
    assert 0 < report["encoder_seconds"] < 100
    sums = {"documents": 25, "passages": counts.passages, "tokens": counts.tokens}
    assert report["this_run"] == {"slices": report["slices"]} | sums
    assert report["kept"] == {"slices": 0, "documents": 0, "passages": 0, "tokens": 0}
    assert report["tokens_per_second"] == pytest.approx(counts.tokens / report["seconds"], 0.01)
    start, *_, end = [json.loads(line) for line in console.file.getvalue().splitlines()]
    assert (start["event"], start["documents_total"]) == ("start", 25)
    assert end | report == end  # nothing in the report that the last event does not say too
    assert (end["event"], end["index"]) == ("done", config.index.uri)
    expected = {
        "documents_total": 25,
        "tokens_total": counts.tokens,
        "output_bytes_total": report["bytes"],
    }
    deadline = time.monotonic() + 30  # counts of the last slices may come with a later export
    while not expected.items() <= (counted := values(scraped(), manifest.run_id)).items():
        assert time.monotonic() < deadline, counted
        time.sleep(0.2)


def command(index: Path, *options: str) -> list[str]:
    run = [sys.executable, "-m", "pipelines.embed_corpus", "conf/debug.yaml"]
    return [*run, "--set", f"index.uri={index}", *options]


def stopped(
    arguments: list[str], number: signal.Signals, when: Callable[[], bool]
) -> tuple[int, str, str]:
    """Exit code, stdout and what a terminal showed of a command that is sent a signal."""
    terminal, its_end = pty.openpty()
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=its_end
    )
    os.close(its_end)
    shown, sent, deadline = b"", False, time.monotonic() + 240
    try:
        while process.poll() is None:
            assert time.monotonic() < deadline, shown
            if not sent and when():
                process.send_signal(number)
                sent = True
            if select.select([terminal], [], [], 0.05)[0]:
                shown += _read(terminal)
        while select.select([terminal], [], [], 0)[0] and (more := _read(terminal)):
            shown += more
    finally:
        process.kill()
        out = process.communicate()[0].decode()
        os.close(terminal)
    return process.returncode, out, shown.decode().replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


def finished(index: Path) -> dict[str, Any]:
    """Done record and parts of each slice; parts without a record are those of no slice."""
    return {
        path.stem: (path.read_text(), sorted(index.glob(f"data/*/{path.stem}-*.parquet")))
        for path in index.glob("runs/*/done/[!.]*")  # no temporary ones
    }


def is_released(index: Path) -> bool:
    return max(index.glob("leases/*.json")).with_suffix(".released").exists()


def interrupted_on_a_terminal(arguments: list[str], index: Path) -> dict[str, Any]:
    """The slices that Ctrl-C leaves, once there are some; what the terminal shows is checked."""
    code, out, shown = stopped(arguments, signal.SIGINT, lambda: bool(finished(index)))
    assert (code, out, is_released(index)) == (130, "", True), shown
    assert "loading the model, " in shown
    # Nothing of the live line is left: the last words come after an erased line.
    interrupted, remedy = shown.rpartition("\x1b[2K")[2].splitlines()
    assert re.match(
        r"interrupted; (no slice was|at least \d+ slices with \d+ documents)", interrupted
    )
    assert remedy.startswith("Run the same command ")
    return finished(index)


def test_command_interrupted_and_started_again_keeps_finished_slices_and_prints_its_lines(
    tmp_path: Path,
) -> None:
    """Ctrl-C on a terminal, then nobody stops it and nobody watches."""
    index = tmp_path / "index"
    arguments = command(index, "--limit", "40", "--set", "slice.documents=5")
    first = interrupted_on_a_terminal(arguments, index)
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    start, *stages, committed, counts, this_run, look = result.stderr.splitlines()
    assert re.match(r"run [0-9a-f]{16}: 40 documents", start)
    of = r"\d+ of 40 documents \(\d+%\)"
    stage = "(starting Ray|loading the model|committing)"
    ours = rf"{stage}, \d+ s(; {of} so far)?|{of}, .* actors busy.*"
    assert all(re.fullmatch(ours, line) for line in stages), stages
    assert committed == f"committed generation 1 of {index}"
    assert re.fullmatch(
        r"40 documents, \d+ passages \(\d+ truncated\), [\d,]+ tokens, [\d.]+ MB, rejects: none",
        counts,
    )
    assert this_run.startswith("this run: ")
    assert look == f"look at it: python -m pipelines.show_index {index}"
    assert first.items() <= finished(index).items()  # no finished slice a second part


@pytest.mark.slow
def test_command_stopped_twice_is_finished_by_the_third_and_keeps_every_finished_slice(
    tmp_path: Path,
) -> None:
    """Ctrl-C on a terminal, SIGTERM, and then nobody stops it."""
    index = tmp_path / "index"
    arguments = command(index, "--limit", "150", "--set", "slice.documents=5")
    json_log = [*arguments, "--log-format", "json"]
    first = interrupted_on_a_terminal(arguments, index)
    going_on = lambda: len(finished(index)) > len(first)  # noqa: E731
    code, out, shown = stopped(json_log, signal.SIGTERM, going_on)
    second = finished(index)
    assert (code, out, is_released(index)) == (130, "", True), shown
    records = [json.loads(line) for line in shown.splitlines()]
    assert records[0]["kept"]["slices"] == len(first)
    assert (records[-1]["event"], records[-1]["exit_code"]) == ("interrupted", 130)
    assert len(first) <= records[-1]["slices"] <= len(second) < 30
    assert records[-1]["documents"] == 5 * records[-1]["slices"]

    result = subprocess.run(json_log, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    start, *others, end = [json.loads(line) for line in result.stderr.splitlines()]
    assert start["kept"]["slices"] == end["kept"]["slices"] == len(second)
    assert {other["event"] for other in others} <= {"progress"}
    assert (end["event"], end["slices"], end["counts"]["documents"]) == ("done", 30, 150)
    assert end["this_run"]["slices"] == 30 - len(second)
    assert end["kept"]["tokens"] + end["this_run"]["tokens"] == end["counts"]["tokens"]
    assert (
        first.items() <= second.items() <= finished(index).items()
    )  # no finished slice a second part
