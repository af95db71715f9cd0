"""Compaction: another generation, the same rows."""

from __future__ import annotations

import json
import os
import random
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_index import POISON, History, view
from typer.testing import CliRunner

from actors.errors import IndexStateError, LeaseHeldError, StorageError
from pipelines.compact_index import app, compact
from pipelines.index import open_index
from pipelines.index.generations import live_generation, publish, read_manifest
from pipelines.index.lease import hold_lease
from pipelines.maintain import compaction
from pipelines.maintain.compaction import Limits
from pipelines.plan.inventory import inventory
from pipelines.plan.plan import load_plan, load_units
from pipelines.store import Store, open_store
from pipelines.sweep_index import sweep
from pipelines.verify_index import verify

A = {f"a{i}": f"some words about item {i} and more" for i in range(7)}
B = {f"b{i}": f"other words about item {i} and more" for i in range(5)}
ALL = Limits(min_dead=0.0001)


def edited(texts: dict[str, str], *names: str) -> dict[str, str]:
    return {k: v + " which is new" if k in names else v for k, v in texts.items()}


def without(texts: dict[str, str], *names: str) -> dict[str, str]:
    return {k: v for k, v in texts.items() if k not in names}


def problems(history: History) -> list[str]:
    return verify(history.store, deep=True).problems.lines()


def places(history: History) -> dict[str, tuple[int, int]]:
    """Of documents, as the ledger has them."""
    rows = history.index.documents().to_pylist()
    return {row["doc_id"]: (row["unit"], row["position"]) for row in rows}


def build(folder: Path, **sections) -> History:
    """Three generations: edits, deletions, documents that stay, one rejected for now."""
    history = History(folder, **sections)
    history.write("a", edited(A) | {"bad": f"some {POISON} words"})
    history.write("b", B | {"empty": ""})
    history.run(poisoned=True)
    history.write("a", edited(without(A, "a2"), "a4") | {"bad": f"some {POISON} words"})
    history.run(poisoned=True)
    history.write("b", {"new": "a new document", **B, "empty": ""})
    history.run(poisoned=True)
    return history


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> History:
    return build(tmp_path_factory.mktemp("compacted"))


@pytest.fixture
def history(template, tmp_path) -> History:
    """A copy of the index, over the same documents: they must stay as they are."""
    shutil.copytree(template.store.uri, tmp_path / "index")
    return template.with_index(tmp_path / "index")


# The same rows


@pytest.mark.parametrize("storage", ["values", "bytes"])
def test_compact_live_view_is_the_same_bit_for_bit(tmp_path, storage):
    history = build(tmp_path, index={"colbert_storage": storage})
    before, rejects = view(history.index), history.index.rejects()
    hashes = sorted(history.index.documents().select(["doc_id", "doc_hash"]).to_pylist(), key=str)
    manifest = compact(history.store, ALL)
    index = history.index
    assert index.info == manifest == read_manifest(history.store, 4)
    assert len(index.chain) == 1
    after = view(index)
    assert after.schema.equals(before.schema, check_metadata=True)
    assert after.equals(before)
    assert index.rejects().equals(rejects)
    assert sorted(index.documents().select(["doc_id", "doc_hash"]).to_pylist(), key=str) == hashes
    assert sum(table.num_rows for _, table in index.deletions()) == 0
    assert problems(history) == []
    stored = pq.read_schema(Path(history.store.uri) / index.part_paths[0])
    old = pq.read_schema(Path(history.store.uri) / history.index_of(3).part_paths[0])
    assert stored.equals(old)


def test_compact_manifest_counts_what_there_is_and_says_what_it_compacts(history):
    live, index = history.index.info, history.index
    manifest = compact(history.store, ALL)
    table = index.to_table(["n_tokens", "truncated", "doc_id"])
    counts = manifest.counts
    assert (manifest.generation, manifest.parent, manifest.compacts) == (4, None, 3)
    assert counts.documents == live.counts.documents + live.counts.unchanged
    assert counts.documents == len(table["doc_id"].unique())
    assert counts.passages == table.num_rows
    assert counts.tokens == sum(table["n_tokens"].to_pylist())
    assert counts.truncated == sum(table["truncated"].to_pylist())
    assert (counts.encoded, counts.unchanged, counts.deleted) == (0, 0, 0)
    assert counts.rejects == live.counts.rejects == {"empty_text": 1, "encoder_error": 1}
    for name in ("index_fingerprint", "space_fingerprint", "outputs", "model"):
        assert getattr(manifest, name) == getattr(live, name)
    report = json.loads(history.store.read("generations/000004/report.json"))
    assert (report["compacts"], report["generations"], report["parts"]) == (3, 3, 1)
    assert report["rows_removed"] > 0


def test_compact_counts_truncated_passages_of_kept_and_of_rewritten_parts(tmp_path):
    history = History(tmp_path, chunk={"by": "none"}, slice={"documents": 2})
    long = "many words " * 200
    history.write("a", {f"a{i}": f"{long} {i}" for i in range(4)} | {"short": "some words"})
    history.run()
    history.write("a", {f"a{i}": f"{long} {i}" for i in range(1, 4)} | {"short": "some words"})
    history.run()
    manifest = compact(history.store, Limits(min_dead=0.001, small_bytes=0))
    assert json.loads(history.store.read("generations/000003/report.json"))["parts_kept"] > 0
    assert manifest.counts.truncated == 3
    assert problems(history) == []


def test_compact_dtypes_are_those_of_all_generations(history):
    path = Path(history.store.uri) / "generations/000002/manifest.json"
    raw = json.loads(path.read_bytes())
    raw["model"]["dtypes"] = ["bfloat16"]
    path.write_text(json.dumps(raw))
    assert compact(history.store, ALL).model.dtypes == ["bfloat16", "float32"]


def test_compact_copies_the_configuration(history):
    history.store.overwrite("generations/000003/config.yaml", b"source: {}")
    compact(history.store, ALL)
    assert history.store.read("generations/000004/config.yaml") == b"source: {}"


def test_compact_after_replayed_rejects_keeps_the_view_and_the_plan(history):
    replayed = history.run("replay")
    assert (replayed.parent, replayed.counts.documents) == (3, 1)
    before = view(history.index)
    manifest = compact(history.store, ALL)
    assert view(history.index).equals(before)
    assert manifest.counts.rejects == {"empty_text": 1}
    plans = [load_plan(history.store, m.run_id) for m in (replayed, manifest)]
    assert plans[0].request == plans[1].request
    assert plans[0].listing == plans[1].listing
    assert history.run().generation == history.run("embed").generation == 5
    assert history.run("replay").generation == 5
    assert problems(history) == []


# What happens afterwards


def test_compact_then_embed_and_reindex_find_nothing_to_do(tmp_path):
    history = build(tmp_path)
    assert history.run("replay").counts.rejects == {"empty_text": 1}
    assert compact(history.store, ALL).generation == 5
    assert history.run().generation == 5
    assert history.run("embed").generation == 5


def test_compact_ledger_has_the_places_of_today(history):
    compact(history.store, ALL)
    units = inventory(history.store, history.index.info)
    run_id = history.index.info.run_id
    assert [unit.origins for unit in units] == [((run_id, 0),), ((run_id, 1),)]
    names = ["a0", "a1", "a3", "a4", "a5", "a6"]
    here = {name: (0, n) for n, name in enumerate(names)}
    here |= {name: (1, n) for n, name in enumerate(["new", *B])}
    assert places(history) == here
    plan, units = load_plan(history.store, run_id), load_units(history.store, run_id)
    assert (plan.kind, plan.parent, plan.units) == ("compact", None, 2)
    assert [(unit.wanted, unit.origins) for unit in units] == [(((0, None),), ())] * 2


def test_compact_then_reindex_goes_on_as_if_nothing_had_been(tmp_path):
    history = build(tmp_path)
    shutil.copytree(history.store.uri, tmp_path / "other")
    other = history.with_index(tmp_path / "other")
    compact(history.store, ALL)
    # A file more before all others: every unit has another number now.
    history.write("0", {"first": "the first of all documents"})
    history.write("b", edited(without(B, "b1"), "b2"))
    mine, theirs = history.run(), other.run()
    assert mine.parent == 4
    names = ("documents", "passages", "encoded", "unchanged", "deleted", "replaced", "rejects")
    assert [getattr(mine.counts, n) for n in names] == [getattr(theirs.counts, n) for n in names]
    assert view(history.index).equals(view(other.index))
    history.remove("a")
    assert history.run().counts.deleted == 6 + 1
    again = compact(history.store, ALL)
    assert (again.generation, again.compacts) == (7, 6)
    assert sorted(places(history)) == ["b0", "b2", "b3", "b4", "first"]
    assert problems(history) == []
    assert history.run().generation == 7


def test_compact_keeps_a_document_whose_unit_is_gone_and_reindex_judges_it_as_before(tmp_path):
    history = History(tmp_path)
    history.write("a", A)
    history.write("b", B)
    history.write("c", {"c0": "some words of c"})
    history.run()
    history.write("a", without(A, "a1"))  # moved to c, perhaps, which cannot be read
    history.damage("c")
    history.run()
    assert "a1" in places(history)
    before = view(history.index)
    compact(history.store, ALL, force=True)
    assert view(history.index).equals(before)
    here = places(history)
    units = {unit.number for unit in inventory(history.store, history.index.info)}
    assert units == {0, 1, 2}
    orphans = {name for name, (unit, _) in here.items() if unit not in units}
    assert orphans == {"a1", "c0"}
    history.write("b", edited(B, "b0"))  # c is as unreadable as before: nobody is taken for gone
    history.run()
    assert {"a1", "c0"} <= places(history).keys()
    compact(history.store, ALL, force=True)
    assert {"a1", "c0"} <= places(history).keys()
    history.write("c", {"c0": "some words of c"})
    history.run()
    assert "a1" not in places(history)
    assert "c0" in places(history)
    compact(history.store, ALL, force=True)
    assert sorted(places(history)) == sorted([*without(A, "a1"), *B, "c0"])
    assert problems(history) == []


def test_compact_where_every_document_is_gone_keeps_the_columns(tmp_path):
    history = History(tmp_path)
    history.write("a", A)
    history.run()
    history.write("a", {})
    history.write("b", {"empty": ""})
    history.run()
    before = history.index.to_table()
    assert before.num_rows == 0
    manifest = compact(history.store, ALL)
    assert history.index.to_table().equals(before)
    assert (manifest.counts.documents, manifest.counts.rejects) == (0, {"empty_text": 1})
    assert problems(history) == []
    assert compact(history.store, ALL, force=True) is None
    history.write("a", A)
    assert history.run().counts.documents == len(A)
    assert problems(history) == []


@pytest.mark.parametrize("seed", range(8))
def test_compact_after_any_history_changes_no_row_and_reindex_goes_on(tmp_path, seed):
    """Files edited, moved, emptied, some documents in two files; compacted now and then."""
    chance = random.Random(seed)
    history = History(tmp_path, slice={"documents": 2})
    files: dict[str, dict[str, str]] = {name: {} for name in "abc"}
    made = 0
    for step in range(5):
        for name in chance.sample(sorted(files), 2):
            texts = files[name]
            for key in [key for key in texts if chance.random() < 0.3]:
                moved = texts.pop(key)
                if chance.random() < 0.6:
                    new = moved if chance.random() < 0.5 else f"{moved} again"
                    files[chance.choice(sorted(files))][key] = new
            for _ in range(chance.randrange(3) + (step == 0)):
                made += 1
                texts[f"d{made}"] = f"some words about item {made} " * chance.choice((1, 1, 30))
            if made and chance.random() < 0.4:  # in a second file, or in the same one again
                files[chance.choice(sorted(files))][f"d{made}"] = "some words that come twice"
        for name, texts in files.items():
            if history.texts.get(name) != texts or chance.random() < 0.3:
                history.write(name, texts)
        history.run()
        expected = {doc_id for texts in files.values() for doc_id in texts}
        assert {*history.index.documents()["doc_id"].to_pylist()} == expected
        if chance.random() < 0.6:
            before = view(history.index)
            small = chance.choice((0, 4000, 1 << 20))
            if compact(history.store, Limits(small_bytes=small), force=True):
                assert len(history.index.chain) == 1
            assert view(history.index).equals(before)
            assert history.run().generation == history.index.info.generation
            now = {
                (name, n): doc_id
                for name, texts in enumerate(files.values())
                for n, doc_id in enumerate(texts)
            }
            for doc_id, place in places(history).items():
                assert len(history.index.chain) > 1 or now[place] == doc_id
        assert problems(history) == []


# What is written, and when


def test_compact_large_parts_without_dead_rows_stay_as_they_are(history):
    old = set(history.index.part_paths)
    manifest = compact(history.store, Limits(small_bytes=0), force=True)
    new = set(history.index.part_paths)
    kept = new & old
    assert kept
    assert new - old
    assert all(f"/{manifest.run_id}/" in path for path in new - old)
    assert problems(history) == []
    report = json.loads(history.store.read("generations/000004/report.json"))
    assert report["parts_kept"] == len(kept)
    assert 0 < report["bytes_written"] < report["bytes"]


def test_compact_small_parts_are_merged_up_to_the_target(history, monkeypatch):
    sizes = {p: (Path(history.store.uri) / p).stat().st_size for p in history.index.part_paths}
    monkeypatch.setattr(compaction, "TARGET_BYTES", 3 * max(sizes.values()))
    before = view(history.index)
    compact(history.store, ALL)
    assert 1 < len(history.index.part_paths) < len(sizes)
    assert view(history.index).equals(before)
    assert problems(history) == []


def test_compact_is_worth_it_by_dead_rows_small_parts_or_generations(history):
    store, parts = history.store, len(history.index.part_paths)
    none = {"min_dead": 1.0, "small_parts": 1000, "generations": 1000}
    assert compact(store, Limits(**none)) is None
    assert compact(store, Limits(**none | {"small_parts": parts})) is None
    assert compact(store, Limits(**none | {"generations": 3})) is None
    assert live_generation(store) == 3
    assert compact(store, Limits(**none | {"generations": 2})).generation == 4
    assert compact(store, Limits(**none | {"generations": 1}), force=True) is None


@pytest.mark.parametrize("limit", [{"min_dead": 0.05}, {"small_parts": 3}])
def test_compact_one_limit_that_is_reached_suffices(history, limit):
    none = {"min_dead": 1.0, "small_parts": 1000, "generations": 1000}
    assert compact(history.store, Limits(**none | limit)).generation == 4


def test_compact_again_has_nothing_to_do(history):
    compact(history.store, ALL, force=True)
    assert compact(history.store, ALL, force=True) is None
    assert compact(history.store, Limits(small_bytes=0), force=True) is None


def test_compact_memory_is_bounded_by_row_groups(tmp_path, monkeypatch):
    """Many small row groups: what is read at once is one of them."""
    from pipelines.index import parts as output

    monkeypatch.setattr(output, "_ROW_GROUP_BYTES", 4000)
    history = build(tmp_path)
    compact(history.store, ALL)
    (path,) = history.index.part_paths
    assert pq.ParquetFile(Path(history.store.uri) / path).num_row_groups > 3
    assert problems(history) == []


# KilledError


class KilledError(Exception):
    """In place of a SIGKILL."""


class Dying(Store):
    """The process dies at a write: before it, or just after."""

    at = 0
    after = False

    def _put(self, path, source, *, exclusive=False):
        if path.startswith("leases/"):
            return super()._put(path, source, exclusive=exclusive)
        Dying.at -= 1
        if Dying.at == 0 and not Dying.after:
            raise KilledError
        created = super()._put(path, source, exclusive=exclusive)
        if Dying.at == 0:
            raise KilledError
        return created


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_compact_killed_at_any_write_shows_the_old_view_and_succeeds_later(
    template, tmp_path, after
):
    before = view(template.index)
    step, killed = 0, True
    while killed:
        step += 1
        index = tmp_path / f"index-{step}"
        shutil.copytree(template.store.uri, index)
        history = template.with_index(index)
        Dying.at, Dying.after = step, after
        try:
            compact(Dying(str(index)), ALL)
            killed = False
        except KilledError:
            pass
        published = (index / "publications/000002.json").exists() and live_generation(
            history.store
        ) == 4
        assert published == (not killed or live_generation(history.store) == 4)
        assert view(history.index).equals(before)
        assert problems(history) == []
        manifest = compact(history.store, ALL)
        assert live_generation(history.store) == 4
        assert manifest is None or manifest.compacts == 3
        assert view(history.index).equals(before)
        assert problems(history) == []
        assert not (index / "generations/000005").exists()
        shutil.rmtree(index)
    assert step > 10


def test_compact_that_died_leaves_garbage_that_sweep_removes(history):
    before = {f.path for f in history.store.find() if not f.path.startswith("leases/")}
    Dying.at, Dying.after = 7, False
    with pytest.raises(KilledError):
        compact(Dying(history.store.uri), ALL)
    assert {f.path for f in history.store.find()} - before
    then = (datetime.now(UTC) - timedelta(days=3)).timestamp()
    for path in Path(history.store.uri).rglob("*.*"):
        os.utime(path, (then, then))
    sweep(history.store)
    left = {f.path for f in history.store.find() if not f.path.startswith("leases/")}
    assert left == before
    assert compact(history.store, ALL).generation == 4


def test_compact_that_lost_its_lease_commits_nothing(history, monkeypatch):
    class TakenOver(Store):
        def upload(self, local_file, path):
            self.overwrite("leases/999999.json", b"{}")
            super().upload(local_file, path)

    with pytest.raises(LeaseHeldError):
        compact(TakenOver(history.store.uri), ALL)
    assert live_generation(history.store) == 3
    assert not (Path(history.store.uri) / "generations/000004/manifest.json").exists()


def test_compact_over_another_publication_in_the_meantime_stays_unpublished(history):
    class RolledBack(Store):
        def create_exclusive(self, path, data):
            created = super().create_exclusive(path, data)
            if path.endswith("manifest.json"):
                publish(open_store(self.uri), 2)
            return created

    with pytest.raises(IndexStateError, match="generation 2 was published"):
        compact(RolledBack(history.store.uri), ALL)
    assert live_generation(history.store) == 2


def test_compact_that_was_taken_back_is_not_done_again(history):
    compact(history.store, ALL)
    publish(history.store, 3)
    with pytest.raises(
        IndexStateError, match="generation 4 is the compaction of generation 3, and was rolled"
    ):
        compact(history.store, ALL)
    assert live_generation(history.store) == 3


def test_compact_beside_an_interrupted_run_needs_force(tmp_path):
    history = build(tmp_path)
    history.write("b", edited(B, "b2"))
    task = history.task()
    history.run(publishes=False)
    history.store.delete("generations/000004/manifest.json")  # it died just before
    with pytest.raises(IndexStateError, match=f"run {task.run_id} adds to generation 3") as caught:
        compact(history.store, ALL)
    assert "--force" in caught.value.remedy
    assert live_generation(history.store) == 3
    assert compact(history.store, ALL, force=True).generation == 4
    assert history.run().counts.replaced == 1
    assert problems(history) == []


def test_compact_damaged_part_is_named_and_nothing_changes(history):
    path = Path(history.store.uri) / history.index.part_paths[0]
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageError, match=path.name):
        compact(history.store, ALL)
    assert live_generation(history.store) == 3


def test_compact_ledger_that_disagrees_with_the_deletions_is_refused(history):
    (path,) = {path for m, path in history.index.ledgers() if m.generation == 3}
    table = pq.read_table(Path(history.store.uri) / path)
    pq.write_table(table.slice(1), Path(history.store.uri) / path)
    with pytest.raises(IndexStateError, match="expected a document of the ledger for each"):
        compact(history.store, ALL)
    assert live_generation(history.store) == 3


# Command


def cli(history: History, *options: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, [history.store.uri, *options])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_compact_cli_says_what_it_did_and_then_that_there_is_nothing_to_do(history):
    said = cli(history, "--min-dead", "0.99")
    assert said.startswith("nothing to do: ")
    assert "3 generations (limit 30)" in said
    assert "(limit 99.0%)" in said
    assert cli(history, "--min-dead", "0.01", "--dry-run").startswith(
        "would compact generation 3 ("
    )
    assert live_generation(history.store) == 3
    said = cli(history, "--min-dead", "0.01")
    assert said.startswith("generation 4 is live: generation 3 compacted (")
    assert "rows are dead" in said
    assert cli(history, "--force").startswith("nothing to do: 0.0% of ")


def test_compact_cli_while_a_run_holds_the_lease_is_exit_2(history):
    with hold_lease(history.store, "0123456789abcdef"):
        assert "found run 0123456789abcdef on" in cli(history, "--force", code=2)
    assert live_generation(history.store) == 3


def test_compact_cli_where_no_index_is_is_exit_2_and_writes_nothing(tmp_path):
    result = CliRunner().invoke(app, [str(tmp_path / "none")])
    assert result.exit_code == 2
    assert "expected a committed index, found none" in " ".join(result.output.split())
    assert not (tmp_path / "none").exists()


# On storage and on Ray


def test_compact_on_s3_gives_the_same_rows(template, s3_bucket):
    uri, options = s3_bucket
    store = open_store(f"{uri}/index", options)
    for file in template.store.find():
        store.upload(Path(template.store.uri) / file.path, file.path)
    before = view(template.index)
    assert compact(store, ALL).generation == 4
    assert view(open_index(store.uri, options)).equals(before)
    assert verify(store, deep=True).problems.lines() == []


def test_compact_then_reindex_on_ray_encodes_only_what_changed(tmp_path, ray_cluster):
    from pipelines.embed_corpus import embed_corpus
    from pipelines.reindex import reindex

    history = build(tmp_path)
    replayed = history.run("replay")
    compact(history.store, ALL)
    assert embed_corpus(history.config).generation == replayed.generation + 1
    assert reindex(history.config).generation == replayed.generation + 1
    history.write("b", edited(B, "b2"))
    counts = reindex(history.config).counts
    assert (counts.encoded, counts.deleted, counts.replaced) == (1, 1, 1)
    assert problems(history) == []
