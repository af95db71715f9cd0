"""Old generations go where one asks for it; what stays can be read, all of it."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_index import History, view
from test_generations import manifest_of
from typer.testing import CliRunner

from actors.errors import IndexStateError
from pipelines.compact_index import compact
from pipelines.index import open_index
from pipelines.index.generations import highest_generation, live_generation, publications, publish
from pipelines.maintain.garbage import Publication, Retention, expired
from pipelines.store import Store, open_store
from pipelines.sweep_index import app, sweep
from pipelines.verify_index import verify

NOW = datetime(2026, 1, 31, tzinfo=UTC)
DAY = timedelta(days=1)
A = {f"a{i}": f"some words about item {i} and more" for i in range(7)}
B = {f"b{i}": f"other words about item {i} and more" for i in range(5)}


# Which


def goes(
    published: list[int],
    *,
    parents: dict[int, int] | None = None,
    committed: dict[int, int] | None = None,
    ages: list[int] | None = None,
    number: int = 6,
    **retention,
) -> list[int]:
    """Of generations 1 to `number`; `committed`, `ages` (of publications): days ago."""
    parents, committed = parents or {}, committed or {}
    ages = ages or [20] * len(published)
    numbers = range(1, number + 1)
    return expired(
        Retention(**retention),
        {n: manifest_of(n).model_copy(update={"parent": parents.get(n)}) for n in numbers},
        {n: NOW - committed.get(n, 20) * DAY for n in numbers},
        {
            n: Publication(generation, NOW - age * DAY)
            for n, (generation, age) in enumerate(zip(published, ages, strict=True), 1)
        },
        NOW,
        DAY,
    )


def test_expired_without_an_option_is_none():
    assert goes([1, 2, 3, 4, 5, 6]) == []


def test_expired_beyond_the_newest_few_go_newest_first():
    assert goes([1, 2, 3, 4, 5, 6], generations=2) == [4, 3, 2, 1]
    assert goes([1, 2, 3, 4, 5, 6], generations=6) == []


def test_expired_never_has_the_live_one_nor_the_newest():
    assert goes([1, 2, 1], generations=1) == [5, 4, 3]  # 2 was taken back
    assert goes([1], days=3) == [5, 4, 3, 2]


def test_expired_counts_what_was_published_too():
    """Generations the gate kept back do not push out those one can go back to."""
    assert goes([1, 2, 3], generations=2) == [4, 1]


def test_expired_published_above_the_live_one_stays_as_it_was_taken_back():
    assert goes([1, 2, 3, 4, 2], generations=1) == [5, 1]


def test_expired_ancestors_of_what_stays_stay():
    assert goes([1, 2, 3, 4, 5, 6], parents={6: 3, 3: 2}, generations=1) == [5, 4, 1]


def test_expired_young_ones_stay():
    assert goes([1, 2, 3, 4, 5, 6], committed={4: 2}, days=3) == [5, 3, 2, 1]
    assert goes([1, 2, 3, 4, 5, 6], committed={4: 2}, days=1) == [5, 4, 3, 2, 1]


def test_expired_age_counts_from_when_it_was_last_live():
    ages = [20, 20, 20, 20, 20, 2]  # 5 was live until two days ago
    assert goes([1, 2, 3, 4, 5, 6], ages=ages, days=3) == [4, 3, 2, 1]
    assert goes([1, 2, 3, 4, 5, 6], ages=[20] * 5 + [0], generations=1) == [4, 3, 2, 1]


def test_expired_with_both_options_are_what_neither_keeps():
    assert goes([1, 2, 3, 4, 5, 6], committed={1: 2}, days=3, generations=2) == [4, 3, 2]


def test_expired_of_an_index_that_was_never_published():
    assert goes([], generations=2) == [4, 3, 2, 1]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_expired_leaves_whole_chains_and_the_live_one(data):
    number = data.draw(st.integers(1, 8))
    parents = {
        n: parent
        for n in range(2, number + 1)
        if (parent := data.draw(st.one_of(st.none(), st.integers(1, n - 1))))
    }
    published = data.draw(st.lists(st.integers(1, number), max_size=6))
    days = st.integers(0, 9)
    found = goes(
        published,
        parents=parents,
        number=number,
        committed={n: data.draw(days) for n in range(1, number + 1)},
        ages=sorted((data.draw(days) for _ in published), reverse=True),
        generations=data.draw(st.one_of(st.none(), st.integers(1, 4))),
        days=data.draw(st.one_of(st.none(), days)),
    )
    left = set(range(1, number + 1)) - set(found)
    assert number in left
    assert not published or published[-1] in left
    assert all(parents[n] in left for n in left & parents.keys())
    assert found == sorted(found, reverse=True)
    for at in range(len(found)):  # wherever it stops
        still = left | set(found[at:])
        assert all(parents[n] in still for n in still & parents.keys())


# Of an index


def make_old(index: Path) -> None:
    then = (datetime.now(UTC) - timedelta(days=3)).timestamp()
    for file in index.rglob("*"):
        if file.is_file():
            os.utime(file, (then, then))


def files(index: Path) -> set[str]:
    found = {str(p.relative_to(index)) for p in index.rglob("*") if p.is_file()}
    return {path for path in found if not path.startswith("leases/")}


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> History:
    """1 <- 2, 3 compacts 2 and keeps parts of 1 as they are, 3 <- 4; 5 was never published; 6
    compacts 4. Everything three days old."""
    history = History(tmp_path_factory.mktemp("forgotten"))
    history.write("a", A)
    history.write("b", B)
    history.run()
    history.write("a", {k: v for k, v in A.items() if k != "a2"})
    history.run()
    assert compact_all(history).generation == 3
    history.write("b", B | {"b1": "other words by now"})
    history.run()
    history.write("b", B | {"b1": "other words by now", "b9": "never live"})
    assert history.run(publishes=False).generation == 5
    assert compact_all(history).generation == 6
    kept = {path.split("/")[1] for path in history.index.part_paths}
    assert len(kept) > 2  # of the first run too
    make_old(Path(history.store.uri))
    return history


def compact_all(history: History):
    from pipelines.maintain.compaction import Limits

    return compact(history.store, Limits(small_bytes=0), force=True)


@pytest.fixture
def history(template, tmp_path) -> History:
    shutil.copytree(template.store.uri, tmp_path / "index", copy_function=shutil.copy2)
    return template.with_index(tmp_path / "index")


def problems(history: History) -> list[str]:
    return verify(history.store, deep=True).problems.lines()


def views(history: History, numbers) -> dict:
    return {n: view(history.index_of(n)) for n in numbers}


def manifests(history: History) -> set[int]:
    return {int(p.parent.name) for p in Path(history.store.uri).glob("generations/*/manifest.json")}


def test_sweep_without_keeping_options_removes_no_generation(history):
    before = files(Path(history.store.uri))
    assert sweep(history.store).generations == []
    assert files(Path(history.store.uri)) == before
    assert problems(history) == []


@pytest.mark.parametrize(
    ("keep", "left"), [(1, {6}), (2, {3, 4, 5, 6}), (3, {3, 4, 5, 6}), (5, {1, 2, 3, 4, 5, 6})]
)
def test_sweep_keep_generations_leaves_them_and_their_ancestors_readable(history, keep, left):
    before = views(history, left)
    garbage = sweep(history.store, retention=Retention(generations=keep))
    assert manifests(history) == left
    assert garbage.generations == sorted(set(range(1, 7)) - left, reverse=True)
    assert garbage.slices == {}
    for number, rows in views(history, left).items():
        assert rows.equals(before[number])
    assert problems(history) == []
    assert live_generation(history.store) == 6
    assert not any(sweep(history.store, retention=Retention(generations=keep)).generations)


def test_sweep_of_all_but_the_live_one_leaves_only_what_it_refers_to(history):
    sweep(history.store, retention=Retention(generations=1))
    index, run_id = Path(history.store.uri), history.index.info.run_id
    left = files(index)
    assert {p for p in left if p.startswith("data/")} == set(history.index.part_paths)
    assert {p for p in left if p.startswith("runs/")} == {
        f"runs/{run_id}/plan.json",
        f"runs/{run_id}/units.parquet",
    }
    assert {p.split("/")[1] for p in left if p.startswith(("documents/", "rejects/"))} == {run_id}
    assert {p.split("/")[1] for p in left if p.startswith("generations/")} == {"000006"}
    assert publications(history.store) == {5: 6}
    assert problems(history) == []


def test_sweep_then_the_next_publication_has_the_next_number(history):
    sweep(history.store, retention=Retention(generations=1))
    publish(history.store, 6)
    assert publications(history.store) == {5: 6, 6: 6}
    assert highest_generation(history.store) == 6


def test_sweep_then_reindex_goes_on(tmp_path):
    history = History(tmp_path)
    history.write("a", A)
    history.run()
    history.write("a", A | {"a0": "other words"})
    history.run()
    compact(history.store, force=True)
    make_old(Path(history.store.uri))
    assert sweep(history.store, retention=Retention(generations=1)).generations == [2, 1]
    assert history.run().generation == history.run("embed").generation == 3
    history.write("b", B)
    manifest = history.run()
    assert (manifest.generation, manifest.counts.documents) == (4, len(B))
    assert problems(history) == []


def test_sweep_keep_days_leaves_what_was_live_lately(history):
    os.utime(Path(history.store.uri) / "publications/000005.json")  # 4 was live until now
    garbage = sweep(history.store, retention=Retention(days=2))
    assert garbage.generations == [5, 2, 1]
    assert manifests(history) == {3, 4, 6}
    assert problems(history) == []


def test_sweep_keeps_what_is_younger_than_days_whatever_the_options(history):
    garbage = sweep(history.store, days=4, retention=Retention(generations=1, days=0))
    assert garbage.generations == []


def test_sweep_reader_of_a_removed_generation_is_told(history):
    sweep(history.store, retention=Retention(generations=2))
    with pytest.raises(IndexStateError) as caught:
        open_index(history.store.uri, generation=2)
    assert "expected generation 2, found none: it was removed, or never committed" in str(
        caught.value
    )
    assert "existing generations: 3, 4, 5, 6." in str(caught.value)
    assert caught.value.exit_code == 2


def test_sweep_reader_that_was_open_goes_on_with_a_kept_generation(history):
    index = history.index_of(4)
    expected = view(index)
    sweep(history.store, retention=Retention(generations=2))
    assert view(index).equals(expected)


def test_sweep_after_a_roll_back_keeps_what_was_taken_back(history):
    publish(history.store, 4)
    make_old(Path(history.store.uri))
    sweep(history.store, retention=Retention(generations=1))
    assert manifests(history) == {3, 4, 6}
    assert live_generation(history.store) == 4
    assert problems(history) == []


class Dying(Store):
    """Every deletion after the first `left` fails, as if the process died there."""

    left = 0

    def delete(self, path: str) -> None:
        if Dying.left <= 0:
            raise ZeroDivisionError
        Dying.left -= 1
        super().delete(path)


@pytest.mark.parametrize("deletions", [*range(0, 12), *range(12, 60, 6)])
def test_sweep_that_dies_never_leaves_a_manifest_without_its_files(history, deletions):
    rows, index = view(history.index), Path(history.store.uri)
    Dying.left = deletions
    with pytest.raises(ZeroDivisionError):
        sweep(Dying(history.store.uri), retention=Retention(generations=1))
    assert problems(history) == []
    assert live_generation(history.store) == 6
    for number in manifests(history):
        view(history.index_of(number))
    sweep(history.store, retention=Retention(generations=1))
    assert view(history.index).equals(rows)
    assert problems(history) == []
    assert {p for p in files(index) if p.startswith("data/")} == set(history.index.part_paths)
    assert manifests(history) == {6}
    assert len(list((index / "runs").iterdir())) == 1


def cli(index: str, *options: str) -> list[str]:
    result = CliRunner().invoke(app, [index, *options])
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_sweep_cli_names_generations_and_dry_run_removes_none(history):
    before = files(Path(history.store.uri))
    said = cli(history.store.uri, "--keep-generations", "2", "--dry-run")
    assert said[:2] == ["would remove generation 1", "would remove generation 2"]
    assert any(line.endswith(": manifests of removed generations") for line in said)
    assert not any("never committed" in line for line in said)
    assert files(Path(history.store.uri)) == before
    said = cli(history.store.uri, "--keep-generations", "2", "--keep-days", "2")
    assert said[:2] == ["removed generation 1", "removed generation 2"]
    assert problems(history) == []


@pytest.mark.parametrize("options", [("--keep-generations", "0"), ("--keep-days", "-1")])
def test_sweep_cli_senseless_options_are_refused(history, options):
    assert CliRunner().invoke(app, [history.store.uri, *options]).exit_code == 2


def test_sweep_on_s3_forgets_generations(template, s3_bucket):
    uri, options = s3_bucket
    store = open_store(f"{uri}/index", options)
    for path in sorted(files(Path(template.store.uri))):
        store.upload(Path(template.store.uri) / path, path)
    assert sweep(store, retention=Retention(generations=1)).generations == []  # young
    garbage = sweep(store, days=0, retention=Retention(generations=1))
    assert garbage.generations == [5, 4, 3, 2, 1]
    assert verify(store, deep=True).problems.lines() == []
    assert view(open_index(store.uri, options)).equals(view(template.index))
