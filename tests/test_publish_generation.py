"""Rolling an index back and forward by hand."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from generations_by_hand import Doc, History
from typer.testing import CliRunner, Result

import pipelines.publish_generation as module
from actors.errors import IndexStateError
from pipelines.index import open_index
from pipelines.index.generations import live_generation, publications, publish, read_chain
from pipelines.index.layout import generation_path, publication_path
from pipelines.index.lease import hold_lease
from pipelines.index.records import Manifest
from pipelines.publish_generation import app, publish_generation
from pipelines.store import open_store

A: Doc = ("Ants", "a0", "a1")
B: Doc = ("Bees", "b0")


@pytest.fixture
def history(tmp_path) -> History:
    """1 <- 2 <- 3, of which 3 was held back."""
    history = History(open_store(str(tmp_path / "index")))
    history.add({"a": A, "b": B})
    history.add({"c": B}, delete=["a"], parent=1)
    history.add({"a": A}, parent=2, published=False)
    return history


def cli(history: History, *arguments: object) -> Result:
    words = [str(word) for word in arguments]
    return CliRunner().invoke(app, [history.store.uri, *words], env={"COLUMNS": "500"})


def refused(history: History, *arguments: object) -> str:
    """What it says; and nothing was published."""
    before = publications(history.store)
    result = cli(history, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert publications(history.store) == before
    return " ".join(result.stderr.split())


# Back and forward


def test_publish_generation_back_is_live_and_says_what_was(history):
    result = cli(history, 1)
    assert result.exit_code == 0
    assert result.stdout == f"generation 1 of {history.store.uri} is live; before: 2\n"
    assert result.stderr == ""
    assert open_index(history.store.uri).info.generation == 1
    assert publications(history.store) == {1: 1, 2: 2, 3: 1}


def test_publish_generation_forward_makes_one_live_that_was_held_back(history):
    assert cli(history, 3).stdout.endswith(" is live; before: 2\n")
    assert cli(history, 1).stdout.endswith(" is live; before: 3\n")
    assert cli(history, 3).stdout.endswith(" is live; before: 1\n")
    ids = open_index(history.store.uri).documents()["doc_id"].to_pylist()
    assert sorted(ids) == ["a", "b", "c"]


def test_publish_generation_first_publication_has_none_before(tmp_path):
    history = History(open_store(str(tmp_path)))
    history.add({"a": A}, published=False)
    assert cli(history, 1).stdout.endswith("is live; before: none\n")
    assert live_generation(history.store) == 1


def test_publish_generation_that_is_live_already_writes_nothing(history):
    result = cli(history, 2)
    assert result.exit_code == 0
    assert result.stdout == f"generation 2 of {history.store.uri} is already live\n"
    assert publications(history.store) == {1: 1, 2: 2}


def test_publish_generation_while_a_run_holds_the_lease_is_possible(history):
    with hold_lease(history.store, "0123456789abcdef"):
        assert cli(history, 1).exit_code == 0
    with pytest.raises(IndexStateError, match="generation 1 was published while generation 3"):
        publish(history.store, 3, over=2)  # as the run does then


def test_publish_generation_on_s3_rolls_back(s3_bucket):
    uri, options = s3_bucket
    history = History(open_store(f"{uri}/index", options))
    history.add({"a": A})
    history.add({"b": B}, parent=1)
    assert publish_generation(history.store, 1).before == 2
    assert live_generation(history.store) == 1


def test_publish_generation_under_open_readers_changes_nothing_for_them(history):
    index = open_index(history.store.uri)  # it has read no table yet
    before = open_index(history.store.uri, generation=2).to_table()
    assert cli(history, 1).exit_code == 0
    assert index.info.generation == 2
    assert index.to_table().equals(before)
    assert index.scanner(["doc_id"]).to_table().num_rows == index.passages == before.num_rows
    assert sorted(index.documents()["doc_id"].to_pylist()) == ["b", "c"]
    history.add({"z": A}, delete=["b", "c"], parent=2)
    assert index.to_table().equals(before)
    assert open_index(history.store.uri).info.generation == 4


# What is refused


def test_publish_generation_unknown_names_what_is_there(history):
    for number in (0, 4):
        said = refused(history, number)
        assert "expected one of generations 1, 2, 3; " in said
        assert f"generation {number} was never made" in said


def test_publish_generation_vacuumed_names_what_is_there(history):
    publish(history.store, 3)
    history.add(compacts=3)
    history.remove(1, 2, files=True)
    said = refused(history, 2)
    assert "expected one of generations 3, 4; generation 2 was removed" in said


def test_publish_generation_whose_ancestor_is_gone_is_refused(history):
    history.remove(1)
    assert "expected generation 1, found none" in refused(history, 3)


@pytest.mark.parametrize("table", ["parts", "documents", "rejects", "deletions"])
@pytest.mark.parametrize("damage", ["gone", "damaged"])
@pytest.mark.parametrize("number", [1, 3])
def test_publish_generation_with_a_table_that_cannot_be_read_is_refused(
    history, table, damage, number
):
    manifest: Manifest = read_chain(history.store, 3)[-1]  # generation 1, of both chains
    path = getattr(manifest.tables, table).path
    if damage == "gone":
        history.store.delete(path)
    else:
        history.store.overwrite(path, b"PAR1")
    said = refused(history, number)
    assert f"generation 1 of {history.store.uri}: expected an undamaged {path}, found" in said
    assert "verify_index" in said


def test_publish_generation_damaged_publication_is_one_line(history):
    history.store.overwrite(publication_path(2), b"{")
    result = cli(history, 1)
    assert result.exit_code == 2
    assert "expected a publication" in result.stderr


def test_publish_generation_where_no_index_is_is_refused(tmp_path):
    history = History(open_store(str(tmp_path / "nothing")))
    for arguments in ([1], [], ["--list"]):
        assert "expected a committed index, found none" in refused(history, *arguments)
    assert not (tmp_path / "nothing").exists()


def test_publish_generation_beside_another_publisher_one_is_told(history, monkeypatch):
    """The other one publishes between the look at what is live and the publication."""

    def overtaken(store, number, published):
        publish(store, 3)
        return real(store, number, published)

    real = module.publish_next
    monkeypatch.setattr(module, "publish_next", overtaken)
    result = cli(history, 1)
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert "another writer published at the same time; generation 3 is live. Run again." in said
    assert publications(history.store) == {1: 1, 2: 2, 3: 3}


def test_publish_generation_many_at_once_each_is_done_or_told(history):
    def attempt(number: int) -> int | None:
        try:
            publish_generation(history.store, number)
        except IndexStateError as error:
            assert "another writer published" in error.message  # noqa: PT017
            return None
        return number

    with ThreadPoolExecutor(4) as pool:
        done = [n for n in pool.map(attempt, [1, 3, 1, 3]) if n]
    assert done
    assert live_generation(history.store) in done


# Another space


def test_publish_generation_of_another_space_warns_that_queries_change(history):
    number = history.add({"a": A}, space_fingerprint="other", index_fingerprint="other")
    result = cli(history, 1)
    assert result.exit_code == 0
    (warning,) = result.stderr.splitlines()
    assert warning.startswith("warning: generation 1 has another vector space than generation 4")
    assert "queries must be encoded again" in warning
    assert "refuses" in warning
    assert "warning" not in cli(history, 2).stderr  # the same as that of 1
    assert "warning" in cli(history, number).stderr


# Which there are


def report(history: History, number: int, **content: object) -> None:
    path = generation_path(number, "report.json")
    history.store.overwrite(path, json.dumps(content).encode())


@pytest.mark.parametrize("arguments", [[], ["--list"], ["1", "--list"]])
def test_publish_generation_list_shows_each_and_changes_nothing(history, arguments):
    report(history, 3, gate=["50 % are deleted", "a canary died"])
    report(history, 2, gate=[])
    history.add(compacts=3, published=False)
    result = cli(history, *arguments)
    assert result.exit_code == 0
    heading, *lines = result.stdout.splitlines()
    assert heading.split()[:4] == ["generation", "parent", "ended", "documents"]
    cells = [line.split(maxsplit=8) for line in lines]
    ended = "2026-01-01T00:00:01"
    assert cells[0] == ["1", ended, "2", "3", "0", "0", "published"]
    assert cells[1] == ["2", "1", ended, "2", "1", "0", "1", "live"]
    assert cells[2][:7] == ["3", "2", ended, "3", "2", "0", "0"]
    assert lines[2].endswith("not published  50 % are deleted; a canary died")
    assert lines[3].split()[:4] == ["4", ended, "3", "0"]
    assert lines[3].endswith("not published  rewrites 3")
    assert publications(history.store) == {1: 1, 2: 2}


def test_publish_generation_list_survives_a_damaged_report(history):
    history.store.overwrite(generation_path(3, "report.json"), b"{")
    assert cli(history).stdout.splitlines()[3].endswith("its report.json cannot be read")
