"""What dead runs leave goes; what a manifest refers to, and what is young, stays."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import config_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto.s3.models import s3_backends
from s3_server import Fault, s3_server, upload_folder  # noqa: F401
from test_replay import corpus, run_with_poison
from typer.testing import CliRunner

from actors.errors import IndexStateError, LeaseHeldError
from pipelines.embed_corpus import embed_corpus
from pipelines.index import open_index
from pipelines.index.lease import hold_lease
from pipelines.store import Store, open_store
from pipelines.sweep_index import app, sweep
from pipelines.verify_index import verify

OLD = timedelta(days=3)


def configs(folder: Path):
    """Of a run that commits, and of one that does not."""
    sections = {"index": {"uri": str(folder / "index")}, "max_reject_fraction": 0.5}
    ids = [f"d{i}" for i in range(20)]
    ids[12] = ids[1]
    source = corpus(folder / "docs.parquet", ids=ids)
    return tuple(config_for(source, slice={"documents": n}, **sections) for n in (20, 4))


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """Generation 1, and beside it a run that was interrupted; everything three days old."""
    folder = tmp_path_factory.mktemp("swept")
    committed, interrupted = configs(folder)
    run_with_poison(interrupted)
    run_with_poison(committed)
    embed_corpus(committed)
    make_old(folder / "index")
    return folder / "index"


@pytest.fixture
def index(template, tmp_path) -> Path:
    shutil.copytree(template, tmp_path / "index")
    return tmp_path / "index"


def make_old(path: Path, age: timedelta = OLD) -> None:
    """A file, or all below a folder."""
    then = (datetime.now(UTC) - age).timestamp()
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            os.utime(file, (then, then))


def put(index: Path, path: str, *, old: bool = True) -> str:
    (index / path).parent.mkdir(parents=True, exist_ok=True)
    (index / path).write_bytes(b"12345")
    if old:
        make_old(index / path)
    return path


def files(index: Path, *, leases: bool = False) -> set[str]:
    found = {str(p.relative_to(index)) for p in index.rglob("*") if p.is_file()}
    return {path for path in found if leases or not path.startswith("leases/")}


def committed_run(index: Path) -> str:
    return json.loads((index / "generations/000001/manifest.json").read_bytes())["run_id"]


def dead_run(index: Path) -> str:
    (run,) = {path.name for path in (index / "runs").iterdir()} - {committed_run(index)}
    return run


def of_run(index: Path, run: str) -> set[str]:
    return {path for path in files(index) if f"/{run}/" in path}


def swept(index: Path, **options) -> set[str]:
    """Paths that a sweep removed, as it says and as it is; leases aside."""
    before = files(index)
    garbage = sweep(open_store(str(index)), **options)
    gone = before - files(index)
    said = {file.path for found in garbage.by_kind.values() for file in found}
    assert {path for path in said if not path.startswith("leases/")} == gone
    return gone


def cli(index: Path, *options: str) -> str:
    result = CliRunner().invoke(app, [str(index), *options])
    assert result.exit_code == 0, result.output
    return result.stdout


# Dead runs


def test_sweep_dead_run_goes_and_the_index_stays(index):
    for name in ("digests/0123456789ab.jsonl.gz", "words/a-b.json", "readings/a-000000/b"):
        put(index, f"runs/{dead_run(index)}/{name}")
    dead = of_run(index, dead_run(index))
    rows = open_index(str(index)).to_table()
    assert swept(index) == dead
    assert open_index(str(index)).to_table().equals(rows)
    assert verify(open_store(str(index)), deep=True).problems.lines() == []
    assert not (index / "runs" / next(iter(dead)).split("/")[1]).exists()
    assert swept(index) == set()


def test_sweep_dead_run_is_named_with_the_slices_to_be_done_again(index):
    run = dead_run(index)
    slices = len(list((index / f"runs/{run}/done").iterdir()))
    assert slices == 6
    said = cli(index)
    assert f"run {run} never committed: {slices} slices to encode again\n" in said
    assert f"removed {slices} files, " in said
    assert said.splitlines()[-1].startswith("removed ")


@pytest.mark.parametrize("name", ["runs", "data", "documents", "rejects"])
@pytest.mark.parametrize("kind", ["of it", "unknown", "temporary"])
def test_sweep_run_with_a_young_file_is_alive(index, name, kind):
    run = dead_run(index)
    young = {
        "of it": next(p for p in sorted(of_run(index, run)) if p.startswith(name)),
        "unknown": f"{name}/{run}/notes",
        "temporary": f"{name}/{run}/.part.parquet.0123456789ab.tmp",
    }[kind]
    put(index, young, old=False) if kind != "of it" else os.utime(index / young)
    assert swept(index) == set()


def test_sweep_days_is_what_is_old(index):
    assert swept(index, days=4) == set()
    assert swept(index, days=2) != set()


def test_sweep_everything_young_removes_nothing(index):
    for path in index.rglob("*"):
        os.utime(path)
    assert swept(index) == set()


def test_sweep_interrupted_run_only_works_and_can_start_again(tmp_path):
    config = configs(tmp_path)[0]
    run_with_poison(config)
    index = tmp_path / "index"
    before = files(index)
    assert before
    assert swept(index) == set()
    make_old(index)
    assert swept(index) == before
    run_with_poison(config)
    embed_corpus(config)
    assert verify(open_store(str(index)), deep=True).problems.lines() == []


class Dying(Store):
    """Every deletion after the first `left` fails, as if the process died there."""

    left = 0

    def delete(self, path: str) -> None:
        if Dying.left <= 0:
            raise ZeroDivisionError
        Dying.left -= 1
        super().delete(path)


@pytest.mark.parametrize("deletions", range(0, 26, 3))
def test_sweep_that_dies_leaves_no_done_record_without_its_part(index, deletions):
    Dying.left = deletions
    dead = of_run(index, dead_run(index))
    with pytest.raises(ZeroDivisionError):
        sweep(Dying(str(index)))
    assert len(dead & files(index)) >= len(dead) - deletions
    for record in index.glob("runs/*/done/*.json"):
        done = json.loads(record.read_bytes())
        for name in ("part", "ledger", "reject_file"):
            assert done[name] is None or (index / done[name]["path"]).exists()
    assert verify(open_store(str(index)), deep=True).problems.lines() == []
    sweep(open_store(str(index)))
    assert not dead & files(index)


# Losers of races


@pytest.mark.parametrize("name", ["data", "documents", "rejects"])
@pytest.mark.parametrize("alive", ["committed", "uncommitted"])
def test_sweep_files_of_slices_that_lost_a_race_go(index, name, alive):
    run = dead_run(index)
    os.utime(index / f"runs/{run}/plan.json")
    if alive == "committed":
        run = committed_run(index)
    nothing = "000000-0000000000-aaaaaaaaaaaa.parquet"
    lost = put(index, f"{name}/{run}/{nothing}")
    put(index, f"{name}/{run}/{nothing.replace('aaaa', 'bbbb')}", old=False)
    assert swept(index) == {lost}


def test_sweep_rejects_of_a_commit_that_lost_a_race_go_and_the_winners_stay(index):
    run = committed_run(index)
    (mine,) = (index / f"rejects/{run}").glob("commit-*.parquet")
    os.utime(index / f"runs/{dead_run(index)}/plan.json")
    lost = put(index, f"rejects/{run}/commit-aaaaaaaaaaaa.parquet")
    assert swept(index) == {lost}
    assert mine.exists()


def test_sweep_tables_no_manifest_names_go_and_reports_stay(index):
    shutil.rmtree(index / "runs" / dead_run(index))  # its parts go too, then
    put(index, "generations/000001/report.html")
    lost = {
        put(index, "generations/000001/parts-aaaaaaaaaaaa.parquet"),
        put(index, "generations/000002/deletions-aaaaaaaaaaaa.parquet"),
        put(index, "generations/000002/report.json"),
    }
    put(index, "generations/000002/parts-bbbbbbbbbbbb.parquet", old=False)
    gone = swept(index)
    assert {path for path in gone if path.startswith("generations/")} == lost
    assert (index / "generations/000001/config.yaml").exists()


# Temporary files, leases, the unknown


def test_sweep_temporary_files_anywhere_go_when_old(index):
    run = committed_run(index)
    name = ".x.parquet.0123456789ab.tmp"
    old = {put(index, f"{folder}{name}") for folder in ("", f"data/{run}/", "leases/")}
    put(index, f"documents/{run}/{name}", old=False)
    put(index, "publications/.x.json.tmp")  # of someone else
    dead = of_run(index, dead_run(index))
    assert swept(index) - dead == {path for path in old if not path.startswith("leases/")}
    assert not (index / f"leases/{name}").exists()
    assert (index / f"documents/{run}/{name}").exists()
    assert (index / "publications/.x.json.tmp").exists()


def test_sweep_old_leases_go_and_the_newest_epoch_stays(index):
    store = open_store(str(index))
    for _ in range(3):
        with hold_lease(store, "run"):
            pass
    epochs = sorted(int(p.stem) for p in (index / "leases").glob("*.json"))
    make_old(index / "leases")
    os.utime(index / f"leases/{epochs[0]:06d}.released")
    sweep(store)
    assert files(index, leases=True) - files(index) == {
        f"leases/{epochs[0]:06d}.released",
        *(f"leases/{epochs[-1] + 1:06d}.{kind}" for kind in ("json", "beat", "released")),
    }


def test_sweep_unknown_files_stay_and_are_listed(index):
    run = committed_run(index)
    unknown = [
        "notes.txt",
        f"data/{run}/notes.parquet",
        "data/other/000000-0000000000-aaaaaaaaaaaa.parquet",
        "generations/000001/notes",
        f"runs/{dead_run(index)}/notes",
    ]
    for path in unknown:
        put(index, path)
    said = cli(index).splitlines()
    for path in unknown:
        assert (index / path).exists()
        assert sum(line.endswith(f": {path}") for line in said) == 1


# Whatever the ages


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_sweep_any_ages_never_takes_what_is_young_or_referred_to(template, tmp_path, data):
    index = tmp_path / "index"
    shutil.rmtree(index, ignore_errors=True)
    shutil.copytree(template, index)
    run = data.draw(st.sampled_from(sorted(path.name for path in (index / "runs").iterdir())))
    put(index, f"data/{run}/000000-0000000000-aaaaaaaaaaaa.parquet")
    ages = {p: data.draw(st.sampled_from([0.0, 0.9, 1.1, 9.0])) for p in sorted(files(index))}
    if data.draw(st.booleans()):
        ages |= dict.fromkeys(of_run(index, dead_run(index)), 9.0)
    for path, days in ages.items():
        make_old(index / path, timedelta(days=days))
    rows = open_index(str(index)).to_table()
    gone = swept(index)
    assert all(ages[path] > 1 for path in gone)
    assert not any(p.startswith(f"runs/{committed_run(index)}/") for p in gone)
    assert verify(open_store(str(index)), deep=True).problems.lines() == []
    assert open_index(str(index)).to_table().equals(rows)


# What stops a sweep


def test_sweep_dry_run_says_what_would_go_and_removes_nothing(index):
    before = files(index)
    dead = of_run(index, dead_run(index))
    said = cli(index, "--dry-run")
    assert files(index) == before
    assert {line.strip() for line in said.splitlines() if line.startswith("  ")} >= dead
    assert f"run {dead_run(index)} never committed: 6 slices" in said
    done = [path for path in dead if "/done/" in path]
    size = sum((index / path).stat().st_size for path in done)
    assert f"would remove 6 files, {size:,} bytes: done records of dead runs\n" in said
    assert swept(index) == dead


def test_sweep_while_a_run_holds_the_lease_is_exit_2_naming_it(index):
    before = files(index)
    with hold_lease(open_store(str(index)), "0123456789abcdef"):
        result = CliRunner().invoke(app, [str(index)])
    assert result.exit_code == 2
    assert "found run 0123456789abcdef on" in " ".join(result.output.split())
    assert files(index) == before


@pytest.mark.parametrize("content", ["", "data/photos/1.jpg", ".x.0123456789ab.tmp"])
def test_sweep_where_no_index_is_is_exit_2_and_writes_nothing(tmp_path, content):
    place = tmp_path / "place"
    if content:
        put(place, content)
    result = CliRunner().invoke(app, [str(place)])
    assert result.exit_code == 2
    assert "expected an index, found none" in " ".join(result.output.split())
    assert files(place, leases=True) == ({content} - {""})


@pytest.mark.parametrize("days", ["0", "-1"])
def test_sweep_days_below_one_are_refused(index, days):
    assert CliRunner().invoke(app, [str(index), "--days", days]).exit_code == 2


DAMAGES: dict[str, Callable[[Path], object]] = {
    "manifest": lambda i: (i / "generations/000001/manifest.json").write_bytes(b"{"),
    "manifest gone": lambda i: (i / "generations/000001/manifest.json").unlink(),
    "publication": lambda i: (i / "publications/000001.json").write_bytes(b"{"),
    "table": lambda i: next(i.glob("generations/000001/parts-*")).write_bytes(b""),
    "table gone": lambda i: next(i.glob("generations/000001/rejects-*")).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_sweep_index_that_cannot_be_read_removes_nothing(index, damage):
    DAMAGES[damage](index)
    before = files(index)
    with pytest.raises(IndexStateError, match="manifests and tables that say what is in use"):
        sweep(open_store(str(index)))
    assert files(index) == before


def test_sweep_done_record_that_cannot_be_read_removes_nothing(index):
    run = committed_run(index)
    put(index, f"data/{run}/000000-0000000000-aaaaaaaaaaaa.parquet")
    next(index.glob(f"runs/{run}/done/*")).write_bytes(b"{")
    before = files(index)
    with pytest.raises(IndexStateError, match="expected a done record"):
        sweep(open_store(str(index)))
    assert files(index) == before


class TakenOver(Store):
    """Another run takes the lease over while the sweep looks around."""

    def find(self, folder: str = ""):
        found = super().find(folder)
        newest = max((f.path for f in found if f.path.startswith("leases/")), default="")
        if any(f.path.endswith(".json") and f.path.startswith("leases/") for f in found):
            self.overwrite(f"leases/{int(newest[7:13]) + 1:06d}.json", b"{}")
        return found


def test_sweep_that_lost_its_lease_removes_nothing(index):
    shutil.rmtree(index / "leases", ignore_errors=True)
    before = files(index)
    with pytest.raises(LeaseHeldError):
        sweep(TakenOver(str(index)))
    assert files(index) == before


# S3


def test_sweep_on_s3_goes_by_the_stores_times(template, s3_bucket, s3_server):  # noqa: F811
    uri, options = s3_bucket
    store = open_store(f"{uri}/index", options)
    upload_folder(template, store)
    assert not any(sweep(store).by_kind.values())  # what was copied is young
    for account in s3_backends.values():
        for backend in account.values():
            bucket = backend.buckets.get(uri.removeprefix("s3://"))
            for key in bucket.keys.values() if bucket else []:
                key.last_modified -= OLD
    dead = of_run(template, dead_run(template))
    s3_server.faults.append(Fault("DELETE", min(dead), 503, "SlowDown", times=1))
    garbage = sweep(store)
    assert s3_server.faults[0].times == 0  # tried again
    assert {
        f.path for kind, fs in garbage.by_kind.items() if kind != "old leases" for f in fs
    } == dead
    assert {f.path for f in garbage.by_kind["old leases"]} >= {"leases/000001.json"}
    left = {file.path for file in store.find() if not file.path.startswith("leases/")}
    assert left == files(template) - dead
    assert verify(store, deep=True).problems.lines() == []
