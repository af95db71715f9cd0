"""A run's page says what its records say, for runs of every kind, and never undoes a run."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import config_for
from html_pages import Parsed
from small_index import History

from pipelines.compact_index import compact
from pipelines.embed_corpus import embed_corpus
from pipelines.index import open_index
from pipelines.index.records import Done, EncoderRecord, SliceTimes
from pipelines.plan.plan import read_done
from pipelines.reports.html import Note
from pipelines.reports.run_numbers import (
    actor_times,
    padded_tokens,
    read_lengths,
    speed_over_time,
    split_tries,
    utilisation,
)
from pipelines.reports.run_report import RunReport, read_run, run_page, write_page

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, articles: pa.Table) -> RunReport:
    """Of 40 articles in four slices; its page was drawn."""
    folder = tmp_path_factory.mktemp("report")
    pq.write_table(articles.slice(0, 40), folder / "docs.parquet")
    index = {"uri": str(folder / "index")}
    config = config_for(folder / "docs.parquet", index=index, slice={"documents": 10})
    embed_corpus(config)
    return read_run(config.index.uri)


def changed(run: RunReport, done: list[Done] | None = None, **manifest) -> RunReport:
    """Another run, of those records and with those fields of the manifest."""
    return RunReport(
        run.store,
        run.manifest.model_copy(update=manifest),
        run.done if done is None else done,
        run.report,
    )


def record(
    began: float, ended: float, tokens: int = 100, worker: str = "a:1", reused: int = 0
) -> Done:
    encoder = EncoderRecord(
        space_fingerprint="0" * 32,
        dim=8,
        colbert_dim=None,
        max_length=128,
        pooling="cls",
        dtype="float32",
        device="cpu",
        worker=worker,
    )
    seconds = ended - began
    times = {"encode": 0.5 * seconds, "write": 0.25 * seconds, "upload": 0.125 * seconds}
    return Done(
        run_id="r",
        nonce="n",
        unit=0,
        first_document=0,
        documents=1,
        last=True,
        embedded=1,
        passages=1,
        tokens=tokens,
        truncated=0,
        reused_tokens=reused,
        rejects={},
        masked=[],
        part=None,
        ledger=None,
        reject_file=None,
        encoder=encoder,
        seconds=seconds,
        times=SliceTimes(began=began, ended=ended, **times),
    )


# Numbers


def test_speed_adds_up_to_the_tokens_that_were_encoded() -> None:
    records = [record(100, 104, 800, reused=300), record(102, 110, 1000, "a:2"), record(107, 107)]
    speed = speed_over_time([], records)
    assert speed is not None
    assert speed.edges[[0, -1]] == pytest.approx([0, 10])
    assert (speed.new * np.diff(speed.edges)).sum() == pytest.approx(500 + 1000 + 100)
    assert speed.new[0] == pytest.approx(125)
    assert speed.new[-1] == pytest.approx(125)
    assert speed.resumed is None
    assert not speed.kept.any()


def test_speed_of_a_resumed_run_leaves_out_the_time_between_its_tries() -> None:
    """Gaps of the last try are shown: nothing was under way, and that took time."""
    early = [record(0, 10), record(5, 15), record(115, 120)]
    late = [record(1000, 1010, 700), record(1030, 1040, 700)]
    kept, new = split_tries([*late, *early], 2)
    assert (kept, new) == (early, late)
    speed = speed_over_time(kept, new)
    assert speed is not None
    assert speed.edges[-1] == pytest.approx(15 + 5 + 40)
    assert speed.resumed == pytest.approx(20)
    widths = np.diff(speed.edges)
    assert (speed.kept * widths).sum() == pytest.approx(300)
    assert (speed.new * widths).sum() == pytest.approx(1400)
    assert not speed.new[speed.edges[1:] <= 20].any()
    assert not speed.kept[speed.edges[:-1] >= 20].any()
    quiet = (speed.edges[:-1] > 30) & (speed.edges[1:] < 50)
    assert quiet.any()
    assert speed.new[quiet] == pytest.approx(0, abs=1e-6)


def test_actor_times_are_each_actors_own() -> None:
    one, other = actor_times([record(20, 30, worker="a:2"), record(0, 8), record(4, 12, 50)])
    assert (one.worker, one.slices, one.tokens, one.span, one.under_way) == ("a:1", 2, 150, 12, 16)
    assert (one.encode, one.write, one.upload, one.wait) == (8, 4, 2, 2)
    assert (one.busy, other.busy, other.worker) == (8 / 12, 0.5, "a:2")
    assert actor_times([]) == []


def test_utilisation_is_of_each_actors_own_time() -> None:
    records = [record(100, 104), record(102, 108), record(500, 502, worker="a:2")]
    assert utilisation(records) == (2 + 3 + 1) / (8 + 2)


def test_utilisation_without_records_that_tell_is_none() -> None:
    assert utilisation([]) is None
    assert utilisation([record(0, 1).model_copy(update={"times": None})]) is None


@pytest.mark.parametrize("batch", [1, 3, 4, 32, 256])
def test_padded_tokens_are_those_of_batches_padded_to_their_longest(batch: int) -> None:
    tokens = np.random.default_rng(0).integers(1, 500, 130)
    for by_length in (False, True):
        order = sorted(tokens.tolist()) if by_length else tokens.tolist()
        batches = [order[i : i + batch] for i in range(0, len(order), batch)]
        expected = sum(len(rows) * max(rows) for rows in batches)
        assert padded_tokens(tokens, batch, by_length=by_length) == expected
    assert padded_tokens(tokens[:0], batch, by_length=True) == 0


def test_lengths_are_the_passages_in_their_order(run: RunReport) -> None:
    lengths = read_lengths(run.store, run.manifest)
    rows = open_index(run.store.uri).to_table(["n_tokens"])["n_tokens"].to_pylist()
    assert lengths.tokens.tolist() == rows
    assert (lengths.parts, lengths.of_parts, lengths.is_sample) == (4, 4, False)


def test_lengths_of_many_parts_are_of_some_and_say_so(
    run: RunReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run.lengths.tokens
    monkeypatch.setattr("pipelines.reports.run_numbers._SAMPLED_PARTS", 2)
    some = changed(run)
    assert (some.lengths.parts, some.lengths.of_parts) == (2, 4)
    assert some.lengths.tokens[0] == whole[0]
    assert some.lengths.tokens[-1] == whole[-1]
    said = f"From 2 of 4 parts, {len(some.lengths.tokens):,} passages."
    assert some.passage_lengths().caption.endswith(said)
    assert some.padding_avoided().caption.endswith(said)


# Pages


def test_page_lies_beside_report_json_and_holds_its_numbers(run: RunReport) -> None:
    folder = Path(run.store.uri, "generations/000001")
    report = json.loads((folder / "report.json").read_text())
    text = (folder / "report.html").read_text()
    assert text == run_page(run)  # what the run wrote is what its records tell a reader later
    parsed = Parsed(text)
    facts = dict(run.facts().items)
    assert facts["documents"] == "40"
    assert facts["passages"] == f"{report['counts']['passages']:,}"
    assert facts["tokens"] == f"{report['counts']['tokens']:,}"
    assert facts["encoders busy"] == f"{report['encoder_busy']:.1%}"
    assert all(label in parsed.text and value in parsed.text for label, value in facts.items())
    charts = [tag.get("aria-label") for name, tag in parsed.tags if name == "svg"]
    assert charts == [
        "Tokens a second",
        "Where the time went",
        "Lengths of passages",
        "Padding avoided",
    ]
    assert "://" not in text
    assert "color-scheme: light dark" in text


def test_page_of_a_run_with_markup_in_its_names_shows_it_as_text(run: RunReport) -> None:
    model = run.manifest.model.model_copy(update={"name": EVIL})
    counts = run.manifest.counts.model_copy(update={"rejects": {EVIL: 3}})
    worker = run.done[0].encoder.model_copy(update={"worker": EVIL, "device": EVIL})
    done = [d.model_copy(update={"encoder": worker}) for d in run.done]
    strange = changed(run, done, model=model, counts=counts, run_id=EVIL, versions={EVIL: EVIL})
    strange = dataclasses.replace(strange, report={**run.report, "gate": [EVIL]})
    parsed = Parsed(run_page(strange))
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert parsed.text.count(EVIL) >= 9


def test_page_of_records_without_times_says_what_cannot_be_drawn(run: RunReport) -> None:
    old = changed(run, [d.model_copy(update={"times": None}) for d in run.done])
    assert isinstance(old.speed(), Note)
    text = run_page(old)
    assert "speed cannot be drawn" in text
    assert text.count("<svg") == 2
    assert "encoders busy" not in dict(old.facts().items)


def test_page_of_one_slice_and_of_no_report_is_drawn(run: RunReport) -> None:
    one = changed(run, run.done[:1])
    assert run_page(one).count("<svg") == 4
    bare = dataclasses.replace(run, report={})
    assert "wall time" not in dict(bare.facts().items)
    assert run_page(bare).count("<svg") == 4


def test_page_of_a_resumed_run_tells_its_tries_apart(run: RunReport) -> None:
    sums = dict.fromkeys(("documents", "passages", "tokens"), 7)
    tries = {"kept": {"slices": 3} | sums, "this_run": {"slices": 1} | sums}
    resumed = dataclasses.replace(run, report={**run.report, **tries})
    assert [len(records) for records in resumed.tries] == [3, 1]
    text = run_page(resumed)
    assert ">earlier attempts</text>" in text
    assert "earlier attempts, kept" in text
    assert "earlier attempts" not in run_page(run)


def test_page_of_thousands_of_slices_and_many_actors_stays_small(run: RunReport) -> None:
    done = [record(i / 10, i / 10 + 3, worker=f"host:{i % 40}") for i in range(5_000)]
    many = dataclasses.replace(changed(run, done), report={})
    text = run_page(many)
    assert len(text) < 100_000
    assert ">all 40</text>" in text
    assert "24 more are not shown" in text


def test_page_of_an_empty_index_is_drawn(tmp_path: Path, pages: None) -> None:
    table = pa.table({"id": ["a"], "text": [" "], "title": ["t"], "url": ["u"]})
    pq.write_table(table, tmp_path / "blank.parquet")
    config = config_for(tmp_path / "blank.parquet", index={"uri": str(tmp_path / "index")})
    embed_corpus(config.model_copy(update={"max_reject_fraction": 1.0}))
    text = (tmp_path / "index/generations/000001/report.html").read_text()
    assert "No passage was written" in text
    assert "empty_text" in text
    assert "100.00%" in text


def test_pages_of_reindexing_and_compacting_say_what_changed(tmp_path: Path, pages: None) -> None:
    history = History(tmp_path)
    texts = {f"d{i}": f"some words of document {i}" for i in range(6)}
    history.write("a", texts)
    history.run()
    history.write("a", {**texts, "d0": "other words", "d9": "new"} | {"d5": ""})
    manifest = history.run()
    done = read_done(history.store, manifest.run_id)
    again = RunReport(history.store, manifest, done, {})
    changes = again.changes()
    assert changes is not None
    assert dict(changes.items)["unchanged"] == f"{manifest.counts.unchanged}" == "4"
    assert "What changed" in run_page(again)
    compacted = compact(history.store, force=True)
    assert compacted is not None
    text = (Path(history.store.uri) / "generations/000003/report.html").read_text()
    assert "What compacting did" in text
    assert "Tokens a second" not in text
    assert "Lengths of passages" in text


# Nothing of it undoes a run


def test_run_whose_page_cannot_be_drawn_is_committed_with_a_warning(
    tmp_path: Path,
    articles: pa.Table,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(_: RunReport) -> str:
        raise RuntimeError("no such\nfont")

    monkeypatch.setattr("pipelines.reports.run_report.run_page", fails)
    pq.write_table(articles.slice(0, 3), tmp_path / "docs.parquet")
    config = config_for(tmp_path / "docs.parquet", index={"uri": str(tmp_path / "index")})
    with caplog.at_level(logging.WARNING, "pipelines"):
        assert embed_corpus(config).counts.documents == 3
    expected = "generation 1 is committed without its report.html (RuntimeError: no such font)"
    assert [r.getMessage() for r in caplog.records] == [expected]
    assert open_index(config.index.uri).to_table(["doc_id"]).num_rows >= 3
    folder = tmp_path / "index/generations/000001"
    assert (folder / "report.json").exists()
    assert not (folder / "report.html").exists()


def test_page_over_a_part_that_is_gone_is_a_warning(
    run: RunReport, tmp_path: Path, caplog: pytest.LogCaptureFixture, pages: None
) -> None:
    elsewhere = dataclasses.replace(run.store, uri=str(tmp_path))
    with caplog.at_level(logging.WARNING, "pipelines"):
        write_page(dataclasses.replace(run, store=elsewhere))
    (warning,) = caplog.records
    assert warning.getMessage().startswith("generation 1 is committed without its report.html (")
    assert list(tmp_path.rglob("*.html")) == []
