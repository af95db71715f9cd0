"""Rejects for now, embedded again: a generation that adds to the one before."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import in_process

from pipelines.embed_corpus import embed_corpus
from pipelines.index import open_index
from pipelines.index.schemas import FOR_NOW
from pipelines.plan.inventory import inventory, read_again
from pipelines.plan.plan import plan_run
from pipelines.run.context import RunContext
from pipelines.run.engine import EncodeJob, slice_encoder, slice_reader
from pipelines.run.tasks import Task, next_embed_task
from pipelines.terminal.cli import silent
from pipelines.terminal.progress import Progress

BAD = (3, 4, 9, 17)


def corpus(path, n=20, ids=None):
    """Documents of which those in BAD hold a word that no vector comes of."""
    words = [f"some words about item {i} and more" + " qqqq" * (i in BAD) for i in range(n)]
    table = pa.table(
        {
            "id": ids or [f"d{i}" for i in range(n)],
            "text": [*words[:-1], ""],
            "title": [f"t{i}" for i in range(n)],
            "url": [f"u{i}" for i in range(n)],
        }
    )
    pq.write_table(table, path, row_group_size=10)
    return path


def run_with_poison(config):
    """All slices encoded by a model that has lost one token; nothing is committed yet."""
    context = RunContext.of(config, Progress(silent()))
    store, request, listing = context.store, context.request, context.listing
    task = next_embed_task(context, fresh=False, replay=False)
    assert isinstance(task, Task)
    run = plan_run(store, config, request, task.pin, listing.files, task.run_id)
    encoder = slice_encoder(EncodeJob(config, task.run_id, "try", request.space_fingerprint))
    reader = slice_reader(config)
    inner = encoder._encoder
    good, bad = (
        set(inner.passage_tokenizer.tokenize([text]).values.tolist())
        for text in ("some words about item 1 and more", "qqqq")
    )
    for token in bad - good:
        inner._forward.backbone.words_VH[token] = torch.nan
    for unit in run.units:
        for piece in reader.slices(unit):
            encoder.encode(piece)
    return store


@pytest.fixture
def config(tmp_path, make_config):
    return make_config(corpus(tmp_path / "docs.parquet"), max_reject_fraction=0.5)


def rejected(index):
    return sorted((row["doc_id"], row["code"]) for row in index.rejects().to_pylist())


def test_replay_embeds_what_failed_and_nothing_else(config, tmp_path, ray_cluster):
    store = run_with_poison(config)
    first = embed_corpus(config)
    assert first.counts.rejects == {"empty_text": 1, "encoder_error": 4}
    rejects = open_index(config.index.uri).rejects().to_pylist()
    assert {row["code"] for row in rejects if not row["final"]} <= FOR_NOW
    units = read_again(inventory(store, first), {1})  # only units with rejects for now
    assert [(unit.number, unit.wanted, unit.origins) for unit in units] == [
        (0, (), ((first.run_id, 0),)),
        (1, ((0, None),), ()),
    ]
    assert [unit.documents_wanted for unit in units] == [0, 10]
    manifest = embed_corpus(config, replay_rejects=True)
    assert (manifest.generation, manifest.parent) == (2, 1)
    assert (manifest.counts.documents, manifest.counts.unchanged) == (4, 15)
    assert manifest.counts.rejects == {"empty_text": 1}
    assert (manifest.counts.encoded, manifest.counts.reused) == (4, 0)
    other = config.index.model_copy(update={"uri": str(tmp_path / "other")})
    undisturbed = embed_corpus(in_process(config.model_copy(update={"index": other})))
    assert undisturbed.counts.documents == 19
    mine, theirs = (
        open_index(uri)
        .to_table()
        .sort_by("passage_id")
        .drop_columns(["dense", "sparse", "colbert"])
        for uri in (config.index.uri, other.uri)
    )
    assert mine.equals(theirs)
    empty = ("d19", "empty_text")
    assert rejected(open_index(config.index.uri)) == [empty]
    failed = [(f"d{number}", "encoder_error") for number in BAD]
    assert rejected(open_index(config.index.uri, generation=1)) == sorted([empty, *failed])
    assert embed_corpus(config, replay_rejects=True) == embed_corpus(config) == manifest


def test_replay_without_rejects_for_now_has_nothing_to_do(config):
    first = embed_corpus(config)
    assert embed_corpus(config, replay_rejects=True) == first


def test_replay_first_of_two_with_one_id_takes_the_place_of_the_second(tmp_path, make_config):
    ids = [f"d{i}" for i in range(20)]
    ids[12] = ids[3]  # of document 3, which fails at first
    config = make_config(corpus(tmp_path / "docs.parquet", ids=ids), max_reject_fraction=0.5)
    run_with_poison(config)
    embed_corpus(config)

    def text_of_d3():
        table = open_index(config.index.uri).to_table(["doc_id", "text"]).to_pylist()
        return [row["text"] for row in table if row["doc_id"] == "d3"]

    assert text_of_d3() == ["some words about item 12 and more"]
    manifest = embed_corpus(config, replay_rejects=True)
    assert text_of_d3() == ["some words about item 3 and more qqqq"]
    assert manifest.counts.rejects == {"duplicate_id": 1, "empty_text": 1}
    assert (manifest.counts.documents, manifest.counts.unchanged) == (4, 14)
    assert (manifest.counts.deleted, manifest.counts.replaced) == (0, 1)
    index = open_index(config.index.uri)
    assert sorted(index.documents()["doc_id"].to_pylist()) == sorted(set(ids) - {"d19"})
    assert len(index.to_table(["doc_id"])["doc_id"].unique()) == 18
