"""What a store that follows an index must delete and upsert, whatever became of the index."""

from __future__ import annotations

import itertools
import random
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pytest
from generations_by_hand import Doc, History, documents_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.errors import IndexStateError
from pipelines.index import open_index
from pipelines.index.changes import Changes
from pipelines.index.generations import publish
from pipelines.index.layout import manifest_path
from pipelines.store import Store, open_store
from pipelines.verify_index import verify

A: Doc = ("Ants", "a0", "a1", "a2")
B: Doc = ("Bees", "b0")
C: Doc = ("Cats", "c0", "c1")
D: Doc = ("Dogs", "d0")


@pytest.fixture
def history(tmp_path) -> History:
    return History(open_store(str(tmp_path / "index")))


def changes(history: History, since: int, to: int | None = None) -> Changes:
    return open_index(history.store.uri, generation=to).changes(since)


def deleted(found: Changes) -> list[str]:
    rows = found.deleted.to_pylist()
    assert all(row["passage_id"].startswith(f"{row['doc_id']}#") for row in rows)
    return sorted(row["passage_id"] for row in rows)


def upserted(found: Changes) -> dict[str, Doc]:
    return documents_of(found.upserts().read_all().to_pylist())


Rows = dict[str, dict[str, Any]]
"""Passage id -> row: the simplest vector store."""


def rows_of(history: History, generation: int) -> Rows:
    rows = open_index(history.store.uri, generation=generation).to_table().to_pylist()
    return {row["passage_id"]: row for row in rows}


def applied(rows: Rows, found: Changes) -> Rows:
    """A store after the changes. What is deleted is in it, and nothing is named twice."""
    rows, seen = dict(rows), set()
    for kind, batch in found:
        for row in batch.to_pylist():
            assert row["passage_id"] not in seen
            seen.add(row["passage_id"])
            if kind == "delete":
                del rows[row["passage_id"]]
            else:
                rows[row["passage_id"]] = row
    return rows


def reading(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths that are read from now on."""
    paths: list[str] = []
    for name in ("read", "open_input"):
        method = getattr(Store, name)

        def noted(self: Store, path: str, *, method: Any = method) -> Any:
            paths.append(path)
            return method(self, path)

        monkeypatch.setattr(Store, name, noted)
    return paths


def run_of(number: int) -> str:
    return f"/{number:016x}/"


# One generation after another


def test_changes_of_new_edited_and_vanished_documents_are_told_apart(history):
    history.add({"a": A, "b": B, "c": C})
    history.add({"a": ("Ants", "a0", "new"), "d": D}, delete=["b"], parent=1)
    found = changes(history, 1)
    assert deleted(found) == ["a#2", "b#0"]
    assert upserted(found) == {"a": ("Ants", "a0", "new"), "d": D}
    assert sorted(found.documents["doc_id"].to_pylist()) == ["a", "d"]
    assert (found.since, found.index.info.generation) == (1, 2)


def test_changes_of_a_document_that_grew_delete_nothing(history):
    history.add({"b": B})
    history.add({"b": (*B, "b1", "b2")}, parent=1)
    assert deleted(changes(history, 1)) == []
    assert upserted(changes(history, 1)) == {"b": (*B, "b1", "b2")}


def test_changes_of_metadata_only_are_upserts(history):
    history.add({"a": A, "b": B})
    history.add({"a": ("Emmets", *A[1:])}, parent=1)
    found = changes(history, 1)
    assert deleted(found) == []
    rows = found.upserts(["passage_id", "url"]).read_all().to_pylist()
    assert rows == [{"passage_id": f"a#{n}", "url": "Emmets"} for n in range(3)]


def test_changes_since_the_same_generation_are_none(history):
    history.add({"a": A})
    found = changes(history, 1)
    assert list(found) == []
    assert found.deleted.num_rows == found.documents.num_rows == 0
    assert found.upserts().read_all().schema.equals(found.index.schema)


def test_changes_over_several_generations_are_their_sum(history):
    history.add({"a": A, "b": B, "c": C})
    history.add({"d": D}, delete=["b"], parent=1)
    history.add({"b": C, "a": D}, delete=["c"], parent=2)
    history.add({"c": A}, delete=["d"], parent=3)
    found = changes(history, 1)
    assert upserted(found) == {"a": D, "b": C, "c": A}  # b and c went and came back
    assert deleted(found) == ["a#1", "a#2"]  # d came and went: the store never had it
    assert (deleted(changes(history, 3)), upserted(changes(history, 3))) == (["d#0"], {"c": A})


def test_changes_rows_masked_by_their_own_generation_do_not_matter(history):
    history.add({"a": A, "b": B})
    history.add({"c": C}, failed={"b": (*B, "b1", "b2")}, parent=1)  # b keeps its old version
    found = changes(history, 1)
    assert (deleted(found), upserted(found)) == ([], {"c": C})


def test_changes_only_deletions_read_no_part(history, monkeypatch):
    history.add({"a": A, "b": B})
    history.add(delete=["a"], parent=1)
    index = open_index(history.store.uri)
    paths = reading(monkeypatch)
    assert deleted(index.changes(1)) == ["a#0", "a#1", "a#2"]
    assert not [path for path in paths if path.startswith("data/")]
    pairs = [(kind, batch.to_pylist()) for kind, batch in index.changes(1)]
    assert [kind for kind, _ in pairs] == ["delete"]


def test_changes_iterated_give_deletions_then_upserts(history):
    history.add({"a": A, "b": B})
    history.add({"a": B, "c": C}, delete=["b"], parent=1)
    kinds = [kind for kind, _ in changes(history, 1)]
    assert kinds == sorted(kinds)
    assert set(kinds) == {"delete", "upsert"}


def test_changes_read_nothing_of_generations_they_do_not_concern(history, monkeypatch):
    history.add({f"x{i}": B for i in range(20)})
    history.add({"a": A}, parent=1)
    history.add({"c": C}, delete=["x3"], parent=2)
    index = open_index(history.store.uri)
    paths = reading(monkeypatch)
    found = index.changes(2)
    assert (deleted(found), upserted(found)) == (["x3#0"], {"c": C})
    # The schema of the columns is that of the first part: its footer is read.
    assert [p for p in paths if run_of(1) in p or run_of(2) in p] == [index.part_paths[0]]
    before = [p for p in paths if p.startswith(("generations/000001", "generations/000002"))]
    assert all("/parts-" in p for p in before)


def test_changes_unknown_columns_are_refused(history):
    history.add({"a": A})
    history.add({"b": B}, parent=1)
    with pytest.raises(IndexStateError, match="got 'nonsense'"):
        changes(history, 1).upserts(["nonsense"])


# Compaction


def test_changes_over_a_compaction_are_those_of_what_it_rewrote(history):
    history.add({"a": A, "b": B, "c": C})
    history.add({"b": D, "d": D}, delete=["c"], parent=1)
    history.add(compacts=2)
    history.add({"a": B}, parent=3)
    assert list(changes(history, 2, to=3)) == []
    found = changes(history, 1)
    assert deleted(found) == ["a#1", "a#2", "c#0", "c#1"]
    assert upserted(found) == {"a": B, "b": D, "d": D}
    for since in (2, 3):
        found = changes(history, since)
        assert (deleted(found), upserted(found)) == (["a#1", "a#2"], {"a": B})


def test_changes_over_a_compaction_need_no_part_behind_it(history, monkeypatch):
    history.add({"a": A, "b": B, "c": C})
    history.add({"b": D, "d": D}, delete=["c"], parent=1)
    history.add(compacts=2)
    for file in history.store.find("data"):
        if run_of(3) not in file.path:
            history.store.delete(file.path)
    index = open_index(history.store.uri)
    paths = reading(monkeypatch)
    assert upserted(index.changes(1)) == {"b": D, "d": D}
    assert not [p for p in paths if run_of(1) in p]


def test_changes_beside_a_compaction_know_that_it_changed_nothing(history):
    """Rolled back behind a compaction, and gone on from there."""
    history.add({"a": A, "b": B})
    history.add(compacts=1)
    history.add({"c": C}, delete=["b"], parent=1)
    found = changes(history, 2)
    assert (deleted(found), upserted(found)) == (["b#0"], {"c": C})


def test_changes_since_what_a_compaction_rewrote_need_it_no_more(history):
    history.add({"a": A, "b": B})
    history.add({"c": C}, parent=1)
    history.add(compacts=2)
    history.add(delete=["a"], parent=3)
    history.remove(1, 2, files=True)
    found = changes(history, 2)
    assert (deleted(found), upserted(found)) == (["a#0", "a#1", "a#2"], {})
    assert list(changes(history, 2, to=3)) == []


def test_changes_between_the_rows_of_large_parts_read_only_row_groups_they_need(tmp_path):
    history = History(open_store(str(tmp_path)), documents_a_part=50)
    history.add({f"x{i}": A for i in range(50)})
    history.add({"x7": C, "x40": D}, parent=1)
    history.add(compacts=2)
    found = changes(history, 1)
    assert upserted(found) == {"x7": C, "x40": D}
    assert len(found.index.part_paths) == 1
    assert len(deleted(found)) == 1 + 2


# No ancestor


def test_changes_after_a_roll_back_compare_the_two(history):
    history.add({"a": A, "b": B})
    history.add({"a": C, "d": D}, parent=1)
    publish(history.store, 1)
    found = changes(history, 2)
    assert found.index.info.generation == 1
    assert (deleted(found), upserted(found)) == (["d#0"], {"a": A})


def test_changes_to_a_sibling_compare_the_two(history):
    history.add({"a": A, "b": B})
    history.add({"a": C, "d": D}, parent=1)
    history.add({"a": C}, delete=["b"], parent=1)
    found = changes(history, 2)
    assert (deleted(found), upserted(found)) == (["b#0", "d#0"], {})


def test_changes_to_a_fresh_index_are_the_differences(history):
    history.add({"a": A, "b": B, "c": C})
    history.add({"a": A, "b": A})
    found = changes(history, 1)
    assert (deleted(found), upserted(found)) == (["c#0", "c#1"], {"b": A})


def test_changes_to_an_index_of_another_kind_are_everything(history):
    """Equal documents have other passages there."""
    history.add({"a": A, "b": B, "c": C})
    history.add({"a": ("Ants", "a0 a1 a2"), "b": B}, index_fingerprint="another")
    found = changes(history, 1)
    assert deleted(found) == ["a#1", "a#2", "c#0", "c#1"]
    assert upserted(found) == {"a": ("Ants", "a0 a1 a2"), "b": B}


def test_changes_over_a_rewriting_into_another_kind_are_everything(history):
    history.add({"a": A})
    history.add({"b": B}, parent=1)
    history.add(compacts=2, index_fingerprint="another")
    assert upserted(changes(history, 1)) == upserted(changes(history, 2)) == {"a": A, "b": B}


def test_changes_past_a_removed_generation_compare_when_both_ends_are_there(history):
    history.add({"a": A, "b": B})
    history.add({"c": C}, delete=["a"], parent=1)
    history.add(compacts=2)
    history.remove(2, files=True)
    found = changes(history, 1)
    assert (deleted(found), upserted(found)) == (["a#0", "a#1", "a#2"], {"c": C})


def test_changes_past_swept_ledgers_compare_when_both_ends_are_there(history):
    history.add({"a": A, "b": B})
    history.add({"c": C}, delete=["a"], parent=1)
    history.add(compacts=2)
    for file in history.store.find("documents"):
        if run_of(2) in file.path:
            history.store.delete(file.path)
    assert upserted(changes(history, 1)) == {"c": C}


# What cannot be told


def vacuumed(history: History, *, left: str) -> None:
    history.add({"a": A, "b": B})
    history.add({"c": C}, parent=1)
    history.add({"d": D}, parent=2)
    history.add(compacts=3)
    if left == "nothing":
        history.remove(1, 2, 3, files=True)
    elif left == "a child":
        history.remove(1)
    else:
        history.remove(3)
        for file in history.store.find("documents" if left == "no ledger" else "generations"):
            if run_of(2) in file.path or "000002/deletions" in file.path:
                history.store.delete(file.path)


@pytest.mark.parametrize("left", ["nothing", "a child", "no ledger", "no table"])
def test_changes_since_a_removed_generation_say_how_to_go_on(history, left):
    vacuumed(history, left=left)
    if left == "a child":  # of 1, which is gone: changes since 2 can still be told
        assert upserted(changes(history, 2)) == {"d": D}
        history.remove(3)
    with pytest.raises(IndexStateError) as caught:
        changes(history, 2)
    text = caught.value.message
    assert text.startswith(f"generation 2 of {history.store.uri} was removed (vacuumed): ")
    there = {"nothing": "4", "a child": "2, 4"}.get(left, "1, 2, 4")
    assert text.endswith(f"; existing generations: {there}.")
    assert "index.to_table()" in caught.value.remedy
    assert "changes(since=4)" in caught.value.remedy
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("since", [0, -1, 3])
def test_changes_since_what_never_was_are_refused(history, since):
    history.add({"a": A})
    history.add({"b": B}, parent=1)
    with pytest.raises(IndexStateError, match=f"a generation from 1 to 2 .*, got {since}"):
        changes(history, since)


def test_changes_of_a_damaged_index_are_not_taken_for_a_vacuum(history):
    history.add({"a": A})
    history.add({"b": B}, parent=1)
    for file in history.store.find("documents"):
        if run_of(2) in file.path:
            history.store.delete(file.path)
    with pytest.raises(FileNotFoundError):
        changes(history, 1)


# Any history


IDS = [f"d{i}" for i in range(7)]


def some(rng: random.Random, most: int) -> dict[str, Doc]:
    ids = rng.sample(IDS, rng.randint(0, most))
    return {
        i: (rng.choice("TU"), *(rng.choice("xyz") for _ in range(rng.randint(1, 3)))) for i in ids
    }


def random_history(store: Store, rng: random.Random) -> History:
    history = History(store, documents_a_part=rng.randint(1, 4))
    history.add(some(rng, 7), failed={"e": A})
    for _ in range(rng.randint(1, 5)):
        parent = rng.choice([*history.views, max(history.views)])
        kind = rng.random()
        if kind < 0.25:
            history.add(compacts=parent)
        elif kind < 0.32:
            history.add(some(rng, 7), index_fingerprint=rng.choice(["index", "another"]))
        else:
            alike = open_index(store.uri, generation=parent).info.index_fingerprint
            put, before = some(rng, 3), list(history.views[parent])
            gone = rng.sample(before, rng.randint(0, min(len(before), 2)))
            failed = {i: B for i in rng.sample(IDS, 1) if i not in put}
            history.add(put, gone, parent=parent, failed=failed, index_fingerprint=alike)
    return history


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 1 << 32))
def test_changes_applied_to_any_generation_give_any_later_one(tmp_path_factory, seed):
    rng = random.Random(seed)
    history = random_history(open_store(str(tmp_path_factory.mktemp("any"))), rng)
    views = {number: rows_of(history, number) for number in history.views}
    for number, rows in views.items():
        assert documents_of(list(rows.values())) == history.views[number]
    for since, to in itertools.product(views, views):  # also back, as after a roll back
        assert applied(views[since], changes(history, since, to)) == views[to]
    gone = rng.choice([*views])
    history.store.delete(manifest_path(gone))
    for since, to in itertools.product(views, views):
        with suppress(IndexStateError):  # with one less they are right, or not told
            assert applied(views[since], changes(history, since, to)) == views[to]


@pytest.mark.parametrize("seed", range(3))
def test_history_by_hand_is_an_index_that_verifies(tmp_path, seed):
    """What these tests stand on."""
    history = random_history(open_store(str(tmp_path)), random.Random(seed))
    assert verify(history.store, deep=True).problems.lines() == []


def test_changes_on_s3_are_those_of_a_local_index(s3_bucket):
    uri, options = s3_bucket
    history = History(open_store(f"{uri}/index", options))
    history.add({"a": A, "b": B})
    history.add({"a": B, "d": D}, delete=["b"], parent=1)
    found = open_index(f"{uri}/index", options).changes(1)
    assert (deleted(found), upserted(found)) == (["a#1", "a#2", "b#0"], {"a": B, "d": D})
    assert isinstance(found.upserts(), pa.RecordBatchReader)
