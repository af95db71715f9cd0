"""Re-indexing: only what changed is encoded, and the live view is that of a fresh build."""

import json
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import config_for
from typer.testing import CliRunner

from actors.encoded import EncodedBatch
from actors.errors import ConfigError, GateError, IndexStateError
from pipelines.embed_corpus import embed_corpus
from pipelines.estimate.confirm import Permit
from pipelines.index import open_index
from pipelines.index.generations import live_generation, publish
from pipelines.reindex import app, reindex
from pipelines.reports.run_report import read_report
from pipelines.run.in_process import InProcessEngine
from pipelines.store import open_store
from pipelines.verify_index import verify

WORDS = ["river", "stone", "bridge", "winter", "garden", "harbour", "signal", "copper", "meadow"]
WORDS += ["lantern", "orchard", "voyage"]


def text_of(seed, sentences=4):
    rng = random.Random(seed)
    return " ".join(" ".join(rng.choices(WORDS, k=8)).capitalize() + "." for _ in range(sentences))


def document(doc_id, text=None, title=None, url="u"):
    return {
        "id": doc_id,
        "title": title or doc_id,
        "text": text_of(doc_id) if text is None else text,
        "url": url,
    }


class Corpus:
    """Parquet files of documents, written anew where they changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, name, documents):
        schema = pa.schema([(key, pa.string()) for key in ("id", "title", "text", "url")])
        table = pa.Table.from_pylist(documents, schema)
        pq.write_table(table, self.folder / f"{name}.parquet", row_group_size=8)

    def read(self, name):
        return pq.read_table(self.folder / f"{name}.parquet").to_pylist()

    def change(self, name, edit):
        self.write(name, edit(self.read(name)))


@pytest.fixture
def corpus(tmp_path):
    """Three files of ten documents."""
    made = Corpus(tmp_path / "docs")
    for name in "abc":
        made.write(name, [document(f"{name}{i}") for i in range(10)])
    return made


@pytest.fixture
def config(corpus, tmp_path):
    return config_of(corpus, tmp_path / "index")


def config_of(corpus, index, **sections):
    sections = {"max_reject_fraction": 1.0, "chunk": {"max_tokens": 24, "overlap": 0}} | sections
    return config_for(corpus.folder, index={"uri": str(index)}, **sections)


def write_config(config, path):
    raw = config.model_dump(mode="json")
    del raw["model"]["outputs"]
    path.write_text(json.dumps(raw))


def live(config):
    return open_index(config.index.uri)


def view(config):
    """passage_id -> everything but the vectors; and the vectors by passage_id."""
    table = live(config).to_table()
    vectors = table.select(["passage_id", "dense", "sparse", "colbert"]).to_pylist()
    rows = table.drop_columns(["dense", "sparse", "colbert"]).to_pylist()
    by_id = {row["passage_id"]: row for row in rows}
    assert len(by_id) == len(rows)
    return by_id, {row["passage_id"]: row for row in vectors}


def hashes_of(config, doc_id):
    rows = view(config)[0].values()
    return {row["passage_hash"] for row in rows if row["doc_id"] == doc_id}


def assert_as_fresh(config, tmp_path):
    """The live view, its rejects and its counts are those of a fresh build of the source."""
    place = tmp_path / "fresh"
    shutil.rmtree(place, ignore_errors=True)
    fresh = config.model_copy(update={"index": config.index.model_copy(update={"uri": str(place)})})
    embed_corpus(fresh)
    (rows, vectors), (expected, others) = view(config), view(fresh)
    assert rows == expected
    for passage_id, mine in vectors.items():
        theirs = others[passage_id]
        np.testing.assert_allclose(mine["dense"], theirs["dense"], atol=2e-3)
        assert mine["sparse"]["indices"] == theirs["sparse"]["indices"]
        np.testing.assert_allclose(mine["sparse"]["values"], theirs["sparse"]["values"], atol=1e-3)
        np.testing.assert_allclose(mine["colbert"], theirs["colbert"], atol=2e-3)
    names = ("doc_id", "code")
    rejects, expected_rejects = (
        Counter(zip(*(table[name].to_pylist() for name in names), strict=True))
        for table in (live(config).rejects(), live(fresh).rejects())
    )
    assert rejects == expected_rejects
    counts, fresh_counts = live(config).info.counts, live(fresh).info.counts
    assert counts.documents + counts.unchanged == fresh_counts.documents
    assert verify(open_store(config.index.uri), deep=True).problems.lines() == []


def test_reindex_unchanged_source_does_nothing(config):
    before = embed_corpus(config)
    assert reindex(config) == before
    assert live_generation(open_store(config.index.uri)) == 1


def test_reindex_after_edits_encodes_only_new_passages(config, corpus, tmp_path):
    embed_corpus(config)
    old = hashes_of(config, "a1")
    text = text_of("a1") + " And one more sentence that was never there before."

    def edit(rows):
        rows[1]["text"] = text
        rows[2]["url"] = "another"
        rows[3]["title"] = "Another title"
        return [*rows[:7], *rows[8:], document("new")]

    corpus.change("a", edit)
    counts = reindex(config).counts
    assert (counts.documents, counts.unchanged) == (4, 26)
    assert (counts.deleted, counts.replaced, counts.edited) == (1, 3, 1)
    # A slice encodes equal passages once; the two documents are in two slices.
    assert counts.encoded == len(hashes_of(config, "new")) + len(hashes_of(config, "a1") - old)
    assert 0 < len(hashes_of(config, "a1") - old) < len(old)
    assert counts.reused == counts.passages - counts.encoded
    assert_as_fresh(config, tmp_path)


def test_reindex_of_files_renamed_shuffled_and_touched_encodes_nothing(config, corpus, tmp_path):
    embed_corpus(config)
    rows = [row for name in "abc" for row in corpus.read(name)]
    random.Random(3).shuffle(rows)
    for name in "abc":
        (corpus.folder / f"{name}.parquet").unlink()
    corpus.write("x", rows[:20])
    corpus.write("y", rows[20:])
    counts = reindex(config).counts
    assert (counts.documents, counts.encoded, counts.reused, counts.deleted) == (0, 0, 0, 0)
    assert counts.unchanged == 30
    os.utime(corpus.folder / "x.parquet", (1, 1))
    counts = reindex(config).counts
    assert (counts.encoded, counts.reused, counts.deleted, counts.unchanged) == (0, 0, 0, 30)
    assert reindex(config).generation == 3
    assert_as_fresh(config, tmp_path)


class NotingEngine(InProcessEngine):
    """Notes the files that it is asked to read."""

    def __init__(self):
        super().__init__()
        self.read = []

    def encode(self, job, todo, progress):
        rows = todo().to_pylist()
        self.read += [Path(piece["path"]).name for row in rows for piece in row["pieces"]]
        return super().encode(job, todo, progress)


def test_reindex_does_not_read_files_that_are_as_they_were(config, corpus):
    embed_corpus(config)
    corpus.change("b", lambda rows: rows[1:])
    engine = NotingEngine()
    assert reindex(config, engine=engine).counts.deleted == 1
    assert engine.read == ["b.parquet", "b.parquet"]  # a row group each


def test_reindex_after_a_file_is_gone_deletes_its_documents_and_reads_nothing(
    config, corpus, tmp_path
):
    embed_corpus(config)
    (corpus.folder / "b.parquet").unlink()
    engine = NotingEngine()
    counts = reindex(
        config.model_copy(update={"gate": config.gate.model_copy(update={"max_deleted": 0.5})}),
        engine=engine,
    ).counts
    assert engine.read == []
    assert (counts.deleted, counts.unchanged, counts.documents) == (10, 20, 0)
    assert_as_fresh(config, tmp_path)


def test_reindex_of_an_id_in_two_files_follows_the_one_that_is_left(config, corpus, tmp_path):
    corpus.change("a", lambda rows: [*rows, document("twice", text_of("first"))])
    corpus.change("c", lambda rows: [*rows, document("twice", text_of("second"))])
    embed_corpus(config)
    corpus.change("a", lambda rows: rows[:-1])
    reindex(config)
    assert text_of("second")[:20] in view(config)[0]["twice#0"]["text"]
    assert_as_fresh(config, tmp_path)


@pytest.mark.parametrize("where", ["a", "c"])
def test_reindex_of_an_id_that_comes_to_a_second_file_has_the_first_in_order(
    config, corpus, tmp_path, where
):
    corpus.change("b", lambda rows: [*rows, document("twice", text_of("old"))])
    embed_corpus(config)
    corpus.change(where, lambda rows: [*rows, document("twice", text_of("new"))])
    reindex(config)
    expected = "new" if where == "a" else "old"
    assert text_of(expected)[:20] in view(config)[0]["twice#0"]["text"]
    assert_as_fresh(config, tmp_path)
    corpus.change(where, lambda rows: rows[:-1])
    reindex(config)
    assert_as_fresh(config, tmp_path)


def test_reindex_of_an_edit_that_is_rejected_finally_removes_the_old_version(
    config, corpus, tmp_path
):
    embed_corpus(config)

    def edit(rows):
        rows[4]["text"] = "   "
        return rows

    corpus.change("a", edit)
    counts = reindex(config).counts
    assert counts.deleted == 1
    assert counts.rejects == {"empty_text": 1}
    assert_as_fresh(config, tmp_path)
    corpus.change("c", lambda rows: rows[:-1])
    assert reindex(config).counts.rejects == {"empty_text": 1}
    assert_as_fresh(config, tmp_path)


def test_reindex_of_an_edit_that_is_rejected_for_now_keeps_the_old_version(
    config, corpus, tmp_path, monkeypatch
):
    embed_corpus(config)
    before = view(config)[0]

    def edit(rows):
        rows[4]["text"] = text_of("poison")
        return rows

    corpus.change("a", edit)
    from actors.encoder import Encoder

    def poisoned(self, input_ids, outputs=None):
        for row in range(len(input_ids)):
            yield EncodedBatch.failed(row, "poison", self.empty())

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "stream", poisoned)
        counts = reindex(config).counts
    assert counts.rejects == {"encoder_error": 1}
    assert (counts.deleted, counts.replaced, counts.unchanged) == (0, 0, 30)
    assert view(config)[0] == before
    counts = reindex(config).counts  # the source is as it was, and it is tried again
    assert (counts.rejects, counts.replaced) == ({}, 1)
    assert_as_fresh(config, tmp_path)
    assert reindex(config).generation == 3


def test_reindex_with_an_unreadable_file_takes_no_document_for_gone(config, corpus, tmp_path):
    embed_corpus(config)
    before = view(config)[0]
    rows = corpus.read("a")
    whole = (corpus.folder / "b.parquet").read_bytes()
    (corpus.folder / "b.parquet").write_bytes(whole[:60] + bytes(100) + whole[160:])
    corpus.write("a", [row for row in rows if row["id"] != "a5"])
    with pytest.raises(Exception, match="cannot be read"):
        reindex(config)
    allowed = config.model_copy(update={"allow_unreadable_units": True})
    counts = reindex(allowed).counts
    assert (counts.deleted, counts.unchanged) == (0, 30)
    assert counts.rejects["unreadable_unit"]
    assert view(config)[0] == before
    (corpus.folder / "b.parquet").write_bytes(whole)
    assert reindex(allowed).counts.deleted == 1  # a5, at last
    assert_as_fresh(config, tmp_path)


def test_reindex_of_another_configuration_asks_before_it_embeds_everything(
    config, corpus, tmp_path
):
    embed_corpus(config)
    other = config_of(corpus, tmp_path / "index", chunk={"max_tokens": 40, "overlap": 0})
    with pytest.raises(
        ConfigError, match=r"everything .* embedded again: chunk.max_tokens differs .* tokens"
    ):
        reindex(other)
    asked = []
    with pytest.raises(ConfigError):
        reindex(other, permit=Permit(ask=lambda question: bool(asked.append(question))))
    assert "chunk.max_tokens" in asked[0]
    manifest = reindex(other, permit=Permit(yes=True))
    assert (manifest.generation, manifest.parent, manifest.counts.documents) == (2, None, 30)
    assert reindex(other, permit=Permit(yes=True)).generation == 2


def test_reindex_of_nothing_committed_says_what_to_run(config):
    with pytest.raises(IndexStateError, match="embed_corpus"):
        reindex(config)


def test_reindex_of_half_a_dump_is_kept_from_going_live(config, corpus, tmp_path):
    embed_corpus(config)
    for name in "abc":
        corpus.change(name, lambda rows: rows[:5])
    for _ in range(2):  # the second start is as the first
        with pytest.raises(GateError, match=r"15 of 30 documents \(50.0%\) are deleted") as caught:
            reindex(config)
        assert caught.value.exit_code == 3
        assert live(config).info.generation == 1
        assert len(live(config).documents()) == 30
    store = open_store(config.index.uri)
    report = read_report(store, 2)
    assert not report["published"]
    assert "are deleted" in report["gate"][0]
    assert len(open_index(config.index.uri, generation=2).documents()) == 15
    publish(store, 2)
    assert_as_fresh(config, tmp_path)


def test_reindex_of_most_documents_edited_is_kept_from_going_live(config, corpus):
    embed_corpus(config)
    for name in "abc":
        corpus.change(name, lambda rows: [row | {"text": text_of(row["id"] + "!")} for row in rows])
    with pytest.raises(GateError, match=r"30 of 30 documents \(100.0%\) are changed"):
        reindex(config)


def test_reindex_of_all_metadata_edited_encodes_nothing_and_goes_live(config, corpus, tmp_path):
    embed_corpus(config)
    for name in "abc":
        corpus.change(name, lambda rows: [row | {"url": "moved"} for row in rows])
    counts = reindex(config).counts
    assert (counts.encoded, counts.replaced, counts.edited) == (0, 30, 0)
    assert counts.reused == counts.passages > 0
    assert_as_fresh(config, tmp_path)


def test_reindex_that_was_taken_back_is_not_done_again(config, corpus):
    embed_corpus(config)
    corpus.change("a", lambda rows: rows[1:])
    reindex(config)
    corpus.change("a", lambda rows: rows[1:])
    reindex(config)
    publish(open_store(config.index.uri), 1)  # by way of a generation that is of another source
    with pytest.raises(GateError, match="generation 3 holds this state of the source"):
        reindex(config)
    corpus.change("a", lambda rows: rows[1:])
    assert reindex(config).counts.deleted == 3


def test_reindex_over_another_publication_in_the_meantime_stays_unpublished(config, corpus):
    embed_corpus(config)
    corpus.change("a", lambda rows: rows[1:])
    reindex(config)
    corpus.change("a", lambda rows: rows[1:])

    class RollingBack(InProcessEngine):
        def encode(self, job, todo, progress):
            publish(job.open_store(), 1)
            return super().encode(job, todo, progress)

    with pytest.raises(GateError, match="generation 1 was published while generation 3"):
        reindex(config, engine=RollingBack())
    assert live(config).info.generation == 1


def test_reindex_without_publishing_leaves_the_live_view_until_it_is_published(config, corpus):
    embed_corpus(config)
    corpus.change("a", lambda rows: rows[1:])
    assert reindex(config, publishes=False).generation == 2
    assert live(config).info.generation == 1
    assert reindex(config).generation == 2
    assert live(config).info.generation == 2


def test_reindex_with_a_canary_that_finds_nothing_is_kept_from_going_live(config, corpus, tmp_path):
    canaries = tmp_path / "canaries.jsonl"
    canaries.write_text(
        json.dumps({"query": text_of("a3"), "doc_id": ["a3", "other"]})
        + "\n"
        + json.dumps({"query": text_of("b3"), "doc_id": "b3"})
    )
    gate = config.gate.model_copy(update={"canaries": str(canaries), "canary_top": 29})
    config = config.model_copy(update={"gate": gate})
    embed_corpus(config)
    corpus.change("b", lambda rows: [row for row in rows if row["id"] != "b3"])
    with pytest.raises(GateError, match="no longer finds b3 among the first 29"):
        reindex(config)


def test_reindex_of_positions_as_ids_embeds_what_moved(corpus, tmp_path):
    config = config_of(corpus, tmp_path / "index")
    columns = config.source.columns.model_copy(update={"id": None})
    source = config.source.model_copy(update={"columns": columns})
    config = config.model_copy(update={"source": source})
    embed_corpus(config)
    corpus.change("a", lambda rows: [document("first"), *rows])
    counts = reindex(config).counts
    assert counts.documents == 11
    assert counts.encoded < counts.passages  # what their old places' documents had in common
    assert_as_fresh(config, tmp_path)


def test_reindex_of_a_metadata_column_of_another_type_is_refused(config, corpus):
    embed_corpus(config)
    rows = [row | {"url": 7} for row in corpus.read("a")]
    pq.write_table(pa.Table.from_pylist(rows), corpus.folder / "a.parquet")
    with pytest.raises(
        Exception, match=r"expected string for 'url'.* as in the index, found int64"
    ):
        reindex(config)


def test_reindex_with_a_limit_reads_all_and_follows_it(config, corpus, tmp_path):
    limited = config.model_copy(update={"source": config.source.model_copy(update={"limit": 15})})
    embed_corpus(limited)
    corpus.change("a", lambda rows: rows[:-2])
    counts = reindex(limited).counts
    assert (counts.documents, counts.unchanged, counts.deleted) == (2, 13, 2)
    assert_as_fresh(limited, tmp_path)


def mutate(rng, corpus, serial):
    """A night's changes: anything that may happen to files and documents."""
    names = [path.stem for path in corpus.folder.glob("*.parquet")]
    files = {name: corpus.read(name) for name in names}
    for _ in range(rng.randint(0, 5)):
        name = rng.choice(sorted(files))
        rows = files[name]
        at = rng.randrange(len(rows)) if rows else None
        kind = rng.choice(
            [
                "edit",
                "grow",
                "meta",
                "add",
                "delete",
                "move",
                "double",
                "empty",
                "rename",
                "new",
                "gone",
            ]
        )
        if kind == "add" or at is None:
            rows.append(document(f"n{serial}-{rng.randrange(10**6)}"))
        elif kind == "edit":
            rows[at]["text"] = text_of(rng.random())
        elif kind == "grow":
            rows[at]["text"] = (rows[at]["text"] or "") + " " + text_of(rng.random(), 1)
        elif kind == "meta":
            rows[at]["url"] = str(rng.random())
        elif kind == "delete":
            del rows[at]
        elif kind == "move":
            files[rng.choice(sorted(files))].append(rows.pop(at))
        elif kind == "double":
            copy = dict(rows[at])
            if rng.random() < 0.5:
                copy["text"] = text_of(rng.random())
            files[rng.choice(sorted(files))].insert(0, copy)
        elif kind == "empty":
            rows[at]["text"] = rng.choice(["", None, " "])
        elif kind == "rename":
            files[f"{rng.choice('adgz')}{serial}{rng.randrange(1000)}"] = files.pop(name)
        elif kind == "new":
            files[f"{rng.choice('adgz')}{serial}{rng.randrange(1000)}"] = [
                document(f"f{serial}-{n}") for n in range(3)
            ]
        elif kind == "gone" and len(files) > 1:
            del files[name]
    if not any(files.values()):
        files["a"] = [document(f"last{serial}")]
    for name in names:
        if name not in files:
            (corpus.folder / f"{name}.parquet").unlink()
    for name, rows in files.items():
        path = corpus.folder / f"{name}.parquet"
        if not path.exists() or corpus.read(name) != rows or rng.random() < 0.1:
            corpus.write(name, rows)


@pytest.mark.parametrize("seed", range(6))
def test_reindex_after_any_history_is_a_fresh_build(corpus, tmp_path, seed):
    rng = random.Random(seed)
    gate = {"max_deleted": 1.0, "max_changed": 1.0}
    config = config_of(corpus, tmp_path / "index", gate=gate, slice={"documents": 3})
    embed_corpus(config)
    for night in range(4):
        mutate(rng, corpus, night)
        seen = {row["passage_hash"] for row in view(config)[0].values()}
        manifest = reindex(config)
        assert_as_fresh(config, tmp_path)
        mine = live(config).info.generation
        assert mine == manifest.generation
        new = {row["passage_hash"] for row in view(config)[0].values()} - seen
        if manifest.generation == night + 2:
            assert manifest.counts.encoded >= len(new)


def test_reindex_cli_over_an_unchanged_source_exits_0_and_says_so(config, tmp_path, capfd):
    embed_corpus(config)
    write_config(config, tmp_path / "run.yaml")
    result = CliRunner().invoke(app, [str(tmp_path / "run.yaml")])
    assert result.exit_code == 0
    assert "nothing to do: generation 1" in capfd.readouterr().err


def test_reindex_cli_of_half_a_dump_exits_3_with_one_line(config, corpus, tmp_path, capfd):
    embed_corpus(config)
    for name in "abc":
        corpus.change(name, lambda rows: rows[:5])
    write_config(config, tmp_path / "run.yaml")
    capfd.readouterr()
    result = CliRunner().invoke(app, [str(tmp_path / "run.yaml")])
    assert result.exit_code == 3
    lines = capfd.readouterr().err.splitlines()
    (line,) = [line for line in lines if line.startswith("error: ")]
    assert "committed and not published" in line


def test_reindex_cli_dry_run_says_what_would_be_read_and_changes_nothing(
    config, corpus, tmp_path, capfd
):
    embed_corpus(config)
    write_config(config, tmp_path / "run.yaml")

    def said():
        capfd.readouterr()
        result = CliRunner().invoke(app, [str(tmp_path / "run.yaml"), "--dry-run"])
        assert result.exit_code == 0
        return result.output

    assert said() == "nothing to do: generation 1 matches its source\n"
    corpus.change("a", lambda rows: rows[1:])
    (corpus.folder / "b.parquet").unlink()
    assert said().startswith("1 of 2 files would be read (")
    assert "compared with generation 1; 1 files are gone" in said()
    assert live(config).info.generation == 1
    assert not (Path(config.index.uri) / "generations/000002").exists()
