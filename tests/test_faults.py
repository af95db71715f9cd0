"""Faults in a running pipeline, on a real Ray cluster: what dies, hangs or comes too late."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.cloudpickle
import torch
import typer
from conftest import in_process
from fault_proxy import FaultProxy
from rich.console import Console
from s3_server import s3_bucket  # noqa: F401
from test_embed_corpus import _job, _planned

from actors.encoder import Encoder
from actors.errors import EmbedError, LeaseHeldError
from actors.network.packing import PackedBatch
from pipelines.embed_corpus import embed_corpus
from pipelines.encode import crash_journal, slice_encoder
from pipelines.encode.crash_journal import read_journal
from pipelines.index import open_index
from pipelines.index.lease import hold_lease
from pipelines.index.records import Done
from pipelines.passages import blocks
from pipelines.plan.plan import read_done
from pipelines.run import engine, job, on_ray
from pipelines.run.commit import commit
from pipelines.run.on_ray import EncodingActor, read_rows
from pipelines.store import open_store
from pipelines.terminal.cli import Log, exit_with_one_line
from pipelines.verify_index import verify

pytestmark = pytest.mark.usefixtures("ray_cluster")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

KILLER, SLEEPER = "Zq Zq Zq", "Yv Yv Yv"


@pytest.fixture
def corpus(tmp_path: Path, articles: pa.Table) -> Callable[..., Path]:
    """30 articles in two row groups; some have another text."""

    def write(texts: dict[int, str]) -> Path:
        rows = articles.slice(0, 30).to_pylist()
        for row, text in texts.items():
            rows[row]["text"] = text
        path = tmp_path / "docs" / "a.parquet"
        path.parent.mkdir()
        pq.write_table(pa.Table.from_pylist(rows, articles.schema), path, row_group_size=15)
        return path

    return write


def assert_whole(uri: str) -> None:
    assert verify(open_store(uri), deep=True).problems.lines() == []


def ids(articles: pa.Table, *without: int) -> list[str]:
    every = articles["id"].to_pylist()[:30]
    return sorted(doc_id for row, doc_id in enumerate(every) if row not in without)


class FatalActor(EncodingActor):
    """Its process dies of the text KILLER, and sleeps over SLEEPER; one death alone is enough."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        slice_encoder.DEATHS_ALONE = crash_journal.DEATHS_ALONE = 1
        super().__init__(*args, **kwargs)
        encoder = self._encoder._encoder
        assert isinstance(encoder, Encoder)
        killer, sleeper = (
            encoder.passage_tokenizer.tokenize([text]).values.tolist() for text in (KILLER, SLEEPER)
        )
        backbone = encoder._forward.backbone

        def fatal(packed: PackedBatch) -> torch.Tensor:
            passages = packed.input_ids_T.split(packed.lengths_N.tolist())
            rows = [passage.tolist() for passage in passages]
            if killer in rows:
                os.kill(os.getpid(), signal.SIGKILL)
            if sleeper in rows:
                time.sleep(60)  # longer than the run may be stuck; Ray lets a busy actor finish
            return backbone(packed)

        encoder._forward.backbone = fatal


def test_passage_that_kills_its_actor_every_time_is_rejected_alone(
    corpus: Any, articles: pa.Table, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "EncodingActor", FatalActor)
    config = make_config(corpus({8: KILLER}), slice={"documents": 10}, max_reject_fraction=0.1)
    manifest = embed_corpus(config)
    assert manifest.counts.rejects == {"encoder_error": 1}
    index = open_index(config.index.uri)
    assert sorted(index.documents()["doc_id"].to_pylist()) == ids(articles, 8)
    [reject] = index.rejects().to_pylist()
    assert (reject["doc_id"], reject["position"]) == (articles["id"][8].as_py(), 8)
    assert reject["detail"].startswith("passage 0: the process died 1 times")
    # One for each death and the one that lives.
    processes = len(read_journal(open_store(config.index.uri), manifest.run_id))
    assert 3 <= processes <= 4
    assert_whole(config.index.uri)


class FatalLoader(EncodingActor):
    """Its process dies while it loads the model, three times at most."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        def die(_: Any) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

        crash_journal.MOST_STARTS = 3
        job.load_encoder = die
        super().__init__(*args, **kwargs)


@pytest.mark.slow
def test_actor_that_dies_whenever_it_loads_the_model_ends_the_run(
    corpus: Any, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "EncodingActor", FatalLoader)
    said = io.StringIO()
    log = Log(Console(file=said))
    with pytest.raises(typer.Exit) as caught, exit_with_one_line(log):
        embed_corpus(make_config(corpus({})))
    assert caught.value.exit_code == 1
    line = " ".join(said.getvalue().split())
    assert line.startswith("error: expected actors to load the model, found 3 more processes")
    assert line.endswith(
        "Check Ray's logs, and whether the actors have enough memory for the model."
    )


def fatal_read_rows(*args: Any, **kwargs: Any) -> Iterator[pa.Table]:
    """Its process dies of the text KILLER, three times."""
    build = blocks.BlockBuilder.build

    def fatal(self: Any, batch: Any, *more: Any) -> Any:
        if KILLER in batch.table["text"].to_pylist():
            os.kill(os.getpid(), signal.SIGKILL)
        return build(self, batch, *more)

    most = crash_journal.MOST_READINGS
    blocks.BlockBuilder.build = fatal  # type: ignore[method-assign]
    crash_journal.MOST_READINGS = engine.MOST_READINGS = 3
    try:
        yield from read_rows(*args, **kwargs)
    finally:
        blocks.BlockBuilder.build = build  # type: ignore[method-assign]
        crash_journal.MOST_READINGS = engine.MOST_READINGS = most


@pytest.mark.slow
def test_unit_that_kills_its_reader_every_time_is_one_that_cannot_be_read(
    corpus: Any, articles: pa.Table, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = corpus({20: KILLER})
    config = make_config(path, slice={"documents": 5})
    with monkeypatch.context() as patch:
        patch.setattr(on_ray, "read_rows", fatal_read_rows)
        with pytest.raises(EmbedError, match=r"1 of 2 units cannot be read .*row group 1"):
            embed_corpus(config)
    # Tried again by the same command; this time nothing kills.
    manifest = embed_corpus(config)
    assert (manifest.counts.documents, manifest.counts.rejects) == (30, {})


@pytest.mark.slow
def test_pipeline_in_which_nothing_moves_stops_naming_stage_and_slice(
    corpus: Any, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "EncodingActor", FatalActor)
    config = make_config(corpus({18: SLEEPER}), slice={"documents": 5}, ray={"stuck_minutes": 0.3})
    with pytest.raises(EmbedError, match=r"nothing moved for .* while encoding") as caught:
        embed_corpus(config)
    assert "slice 000001-0000000000 in " in caught.value.message
    assert "run the same command again" in caught.value.remedy
    monkeypatch.undo()
    assert embed_corpus(config).counts.documents == 30


def test_actor_and_reader_killed_from_outside_cost_nothing(
    corpus: Any, articles: pa.Table, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    psutil = pytest.importorskip("psutil")
    config = make_config(corpus({}), slice={"documents": 3})
    killed = []

    def kill_some(self: Any, done: Done) -> None:
        if len(killed) < 3:  # the actor that wrote this receipt, twice, and a reader
            pid = int(done.encoder.worker.rpartition(":")[2])
            names = {p.pid: p.name() for p in psutil.process_iter()}
            readers = [p for p, name in names.items() if name.startswith("ray::MapBatches(read")]
            pid = readers[0] if len(killed) == 1 and readers else pid
            killed.append(names.get(pid))
            if pid in names:
                os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr("pipelines.run.on_ray.RunMetrics.update", kill_some)
    manifest = embed_corpus(config)
    assert len(killed) == 3
    assert (manifest.counts.documents, manifest.counts.rejects) == (30, {})
    assert sorted(open_index(config.index.uri).documents()["doc_id"].to_pylist()) == ids(articles)
    assert_whole(config.index.uri)


@pytest.mark.slow
def test_run_over_a_store_that_fails_now_and_then_is_as_over_one_that_does_not(
    corpus: Any,
    articles: pa.Table,
    make_config: Any,
    s3_bucket: Any,  # noqa: F811
) -> None:
    """A tenth of all requests for documents and index fails, in every way there is."""
    bucket, options = s3_bucket
    open_store(bucket, options).upload(corpus({}), "docs/a.parquet")
    with FaultProxy(options["client_kwargs"]["endpoint_url"]) as proxy:
        client = {**options["client_kwargs"], "endpoint_url": proxy.endpoint}
        patience = {"read_timeout": 2, "connect_timeout": 2}
        faulty = options | {"client_kwargs": client, "config_kwargs": patience}
        proxy.inject_at_random(seed=6, rate=0.1)
        config = make_config(
            f"{bucket}/docs",
            source={"storage_options": faulty},
            index={"uri": f"{bucket}/index", "storage_options": faulty},
            slice={"documents": 5},
        )
        manifest = embed_corpus(config)
        assert proxy.injected.total() >= 5, proxy.injected
        assert len(proxy.injected) >= 3
    assert (manifest.counts.documents, manifest.counts.rejects) == (30, {})
    found = open_index(f"{bucket}/index", options).documents()["doc_id"].to_pylist()
    assert sorted(found) == ids(articles)
    store = open_store(f"{bucket}/index", options)
    assert verify(store, deep=True).problems.lines() == []


def files_of(index: str) -> dict[Path, bytes]:
    """Content of every file that is not overwritten now and then."""
    paths = (path for path in Path(index).rglob("*.*") if not {"leases", "words"} & {*path.parts})
    return {path: path.read_bytes() for path in paths}


def test_zombie_of_a_killed_run_changes_nothing(corpus: Any, make_config: Any) -> None:
    """It encodes and commits what another run has taken over and finished meanwhile."""
    config = make_config(corpus({}), slice={"documents": 15}, model={"dtype": "float32"})
    context, run = _planned(config)
    store, run_id = context.store, run.plan.run_id
    zombie, reader = engine.slice_encoder(_job(context, run)), engine.slice_reader(config)
    with hold_lease(store, run_id, beat_seconds=60) as lease:
        done = [zombie.encode(next(iter(reader.slices(run.units[0]))))]
        # As if it were silent for long, on another host.
        store.overwrite("leases/000001.released", b"")
        manifest = embed_corpus(in_process(config))
        before = files_of(config.index.uri)
        late = zombie.encode(next(iter(reader.slices(run.units[1]))))
        assert late == read_done(store, run_id)[1]  # the winner's record, not its own
        with pytest.raises(LeaseHeldError, match="another run took over epoch 1"):
            commit(context, run, [*done, late], lease.check)
    after = files_of(config.index.uri)
    assert {path: after[path] for path in before} == before
    assert (manifest.generation, manifest.counts.documents) == (1, 30)
    assert len(read_done(store, run_id)) == 2
    assert_whole(config.index.uri)
