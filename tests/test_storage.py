"""The store: the same on a local disk and on S3, and what only one of them can do."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import pytest
from s3_server import Fault, s3_bucket, s3_endpoint, s3_server  # noqa: F401

from actors.errors import StorageError
from pipelines.store import Store, open_store
from pipelines.store.files import remote_files_below

ROOT = Path(__file__).parents[1]
BIG = bytes(range(256)) * 9000


@pytest.fixture
def local(tmp_path):
    return open_store(str(tmp_path / "index"))


@pytest.fixture
def s3_store(s3_bucket):  # noqa: F811
    uri, options = s3_bucket
    return open_store(f"{uri}/some/index", options)


@pytest.fixture(params=["local", "s3"])
def store(request):
    return request.getfixturevalue({"s3": "s3_store"}.get(request.param, request.param))


def fill(store, *paths, **contents):
    for path in paths:
        store.overwrite(path, contents.get(path, b"1"))


def another_client(store):
    if store.is_local:
        return fsspec.filesystem("file")
    return fsspec.filesystem("s3", **store.options, skip_instance_cache=True)


def paths_of(files):
    return [file.path for file in files]


# Locations


def test_open_store_relative_path_stays_where_it_was_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = open_store("out/idx")
    monkeypatch.chdir("/")
    store.overwrite("a/b.json", b"1")
    assert (tmp_path / "out/idx/a/b.json").read_bytes() == b"1"
    assert store.url("a/b.json") == str(tmp_path / "out/idx/a/b.json")


def test_open_store_known_location_is_local_or_not():
    locals = {"/abs/idx/": "/abs/idx", "file:///abs/idx": "/abs/idx", "/abs/a::b:c": "/abs/a::b:c"}
    for uri, path in (locals | {"s3://bucket/idx/": None, "s3://bucket": None}).items():
        store = open_store(uri)
        assert store.is_local == (path is not None)
        assert store.uri == (path or uri.rstrip("/"))
        assert store.url("x/y") == f"{store.uri}/x/y"


def test_open_store_other_location_is_refused():
    others = ["memory://idx", "http://host/idx", "ftp://host/idx", "simplecache::s3://bucket/idx"]
    others += ["s3://bucket/a::file://b", "s3:/bucket/idx", "s3://", "s3:///idx", "file://idx", ""]
    for uri in others:
        with pytest.raises(StorageError, match=r"^expected a local path, s3://.*, found"):
            open_store(uri)


@pytest.mark.parametrize(
    ("scheme", "driver", "extra"),
    [("gs", "gcsfs", "gcs"), ("az", "adlfs", "azure"), ("abfs", "adlfs", "azure")],
)
def test_open_store_missing_driver_names_the_extra(scheme, driver, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, driver, None)  # importing it fails, installed or not
    with pytest.raises(StorageError, match="not installed") as caught:
        open_store(f"{scheme}://container@account.example/idx")
    assert f"packvec[{extra}]" in caught.value.remedy


def test_store_repr_shows_no_secret():
    store = open_store("s3://bucket/idx", {"key": "me", "secret": "hush"})
    assert "hush" not in repr(store)
    assert {store: 1}[open_store("s3://bucket/idx", {"key": "me", "secret": "hush"})] == 1


# Reading


def test_missing_file_is_file_not_found_for_every_way_to_read(store, tmp_path):
    fill(store, "a/b.json")
    reads = [store.read, store.open_input, store.size, lambda path: store.read_many([path])]
    for read in [*reads, lambda path: store.download(path, tmp_path / "copy")]:
        with pytest.raises(FileNotFoundError):
            read("a/no.json")
    for folder in ("a", "b"):
        with pytest.raises(FileNotFoundError):
            store.size(folder)
    assert [store.exists(path) for path in ("a/b.json", "a", "a/c.json")] == [True, False, False]


def test_read_many_order_is_the_order_asked(store):
    names = [f"done/{n:02d}*[a].json" for n in (3, 1, 2, 1)]  # a glob would match, or sort
    fill(store, *names, **{name: name.encode() for name in names})
    assert store.read_many(names) == [name.encode() for name in names]
    assert store.read_many([]) == []


def test_read_many_s3_reads_concurrently(s3_store):
    # Each read waits, in the server's stead, until two are under way: one by one would never end.
    fill(s3_store, "a", "b")
    both = threading.Barrier(2, timeout=20)

    class Waiting(Store):
        def read(self, path: str) -> bytes:
            both.wait()
            return super().read(path)

    assert Waiting(s3_store.uri, s3_store.options).read_many(["a", "b"]) == [b"1", b"1"]


# Listing


def test_list_files_and_folders_are_apart_sorted_and_direct(store):
    fill(store, "g/000002/manifest.json", "g/000001/manifest.json", "g/b.json", "g/a.json")
    fill(store, "gx/other.json", "g/.a.json.0123.tmp")  # being written
    assert store.list("g") == store.list("g/") == ["g/a.json", "g/b.json"]
    assert store.list_folders("g") == ["g/000001", "g/000002"]
    assert store.list_folders("") == ["g", "gx"]
    assert store.list("") == store.list("g/a.json") == store.list("nothing") == []
    assert (
        store.list_folders("nothing/here") == store.find("nothing") == store.find("g/a.json") == []
    )


def test_find_files_at_any_depth_are_listed_with_sizes_sorted(store):
    assert store.find() == store.list_folders("") == []
    sizes = {"g/000001/manifest.json": 3, "g/.a.json.0123.tmp": 1, "gx/b": 2, "top": 0, "g/a*": 4}
    fill(store, *sizes, **{path: b"x" * size for path, size in sizes.items()})
    assert [(f.path, f.size) for f in store.find()] == sorted(sizes.items())
    assert {path: store.size(path) for path in sizes} == sizes
    for folder in ("g", "g/"):
        assert paths_of(store.find(folder)) == sorted(p for p in sizes if p.startswith("g/"))
    assert paths_of(store.find("g/000001")) == ["g/000001/manifest.json"]


def test_listings_show_what_someone_else_wrote_at_once(store):
    fill(store, "d/a")
    assert store.list("d") == paths_of(store.find("d")) == ["d/a"]
    assert not store.exists("d/b")
    other = another_client(store)
    other.pipe_file(store.path("d/b"), b"2")
    assert store.list("d") == paths_of(store.find("d")) == ["d/a", "d/b"]
    assert store.exists("d/b")
    other.rm_file(store.path("d/a"))
    assert store.list("d") == paths_of(store.find("d")) == ["d/b"]
    assert not store.exists("d/a")


def test_find_modified_is_when_it_was_written_in_utc(store, tmp_path):
    before = datetime.now(UTC) - timedelta(seconds=2)  # object stores round to a second
    fill(store, "a/b")
    (file,) = store.find()
    assert before <= file.modified <= datetime.now(UTC) + timedelta(seconds=2)
    assert file.modified.utcoffset() == timedelta(0)
    if store.is_local:
        os.utime(tmp_path / "index/a/b", (1_000_000_000, 1_000_000_000))
        assert store.find()[0].modified == datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC)


def test_listings_local_links_are_followed_once_and_dangling_ones_left_out(local, tmp_path):
    for folder in ("elsewhere", "index"):
        (tmp_path / folder).mkdir()
    (tmp_path / "elsewhere/a").write_bytes(b"123")
    (tmp_path / "index/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "index")
    (tmp_path / "index/dangling").symlink_to(tmp_path / "nothing")
    assert [(f.path, f.size) for f in local.find()] == [("linked/a", 3)]
    assert local.list_folders("") == ["linked"]


def test_find_s3_more_than_a_page_is_listed_whole_without_markers(
    s3_store,
    s3_server,  # noqa: F811
    monkeypatch,
):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    names = [f"d/{n}" for n in range(8)]
    fill(s3_store, *names)
    another_client(s3_store).pipe_file(f"{s3_store.path('d')}/", b"")
    del s3_server.requests[:]
    assert paths_of(s3_store.find()) == names
    assert len(s3_server.requests) >= 3
    assert s3_store.list("d") == names


def test_remote_files_without_a_time_are_a_storage_error():
    class NoTimes:
        def find(self, folder, detail):
            return {f"{folder}/a": {"type": "file", "size": 1, "LastModified": "yesterday"}}

    with pytest.raises(StorageError, match=r"bucket/a: expected a time of its last change"):
        remote_files_below(NoTimes(), "bucket")


# Writing


def test_create_exclusive_keeps_what_the_first_wrote(store):
    assert store.create_exclusive("runs/r/a.json", b"first")
    assert not store.create_exclusive("runs/r/a.json", b"second")
    assert store.create_exclusive("runs/r/a.json", b"first")  # a try whose answer got lost
    assert store.read("runs/r/a.json") == b"first"
    store.overwrite("runs/r/a.json", b"2")
    assert store.read("runs/r/a.json") == b"2"


def test_create_exclusive_race_of_processes_has_one_winner(store):
    """Also: a pickled store works in another process."""
    script = (
        "import os, pickle, sys; store = pickle.loads(bytes.fromhex(sys.argv[1]));"
        "print(store.read('warm').decode(), flush=True); sys.stdin.readline();"
        "print(*[int(store.create_exclusive(f'done/{n}', b'%d' % os.getpid()))"
        " for n in range(20)])"
    )
    store.overwrite("warm", b"ready")
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", script, pickle.dumps(store).hex()],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [racer.communicate(timeout=30)[0].split() for racer in racers]
    assert [int(a) + int(b) for a, b in zip(*won, strict=True)] == [1] * 20


def test_upload_and_download_copy_whole_files(store, tmp_path):
    part = tmp_path / "part.bin"
    part.write_bytes(BIG)
    store.upload(part, "data/r/part.bin")
    store.upload(str(part), "data/r/again.bin")
    assert store.read("data/r/part.bin") == part.read_bytes() == BIG
    part.write_bytes(b"reused")  # what was uploaded is a copy
    store.download("data/r/again.bin", tmp_path / "down.bin")
    assert (tmp_path / "down.bin").read_bytes() == BIG
    with pytest.raises(FileNotFoundError):
        store.upload(tmp_path / "nothing", "data/x")


def test_write_local_leaves_no_temporary_files_and_respects_umask(local, tmp_path):
    (tmp_path / "plain").write_bytes(b"x")
    local.create_exclusive("a", b"1")
    local.create_exclusive("a", b"2")
    local.overwrite("b", b"1")
    local.upload(tmp_path / "plain", "c")
    written = sorted((tmp_path / "index").iterdir())
    assert [path.name for path in written] == ["a", "b", "c"]
    assert {path.stat().st_mode for path in written} == {(tmp_path / "plain").stat().st_mode}


# Removing


def test_delete_file_is_gone_and_no_other(store):
    fill(store, "a/b", "a/bc", "a/[b]*")
    for path in ("a/b", "a/b", "never/was", "a/[b]*"):  # no glob
        store.delete(path)
    assert store.list("a") == paths_of(store.find()) == ["a/bc"]
    with suppress(StorageError):  # object stores have no folders, and say nothing
        store.delete("a")
    assert store.exists("a/bc")


def test_delete_many_only_those_are_gone(store):
    names = [f"d/{n:02d}" for n in range(80)]
    fill(store, *names)
    store.delete_many(iter(names[::2]))
    assert store.list("d") == names[1::2]
    store.delete_many([*store.list("d"), "d/other"])
    assert store.find() == []
    store.delete_many([])


def test_delete_local_folders_left_empty_go_but_not_the_root_nor_a_links_target(local, tmp_path):
    index = tmp_path / "index"
    fill(local, "a/b/c", "a/d")
    local.delete("a/b/c")
    assert [path.name for path in (index / "a").iterdir()] == ["d"]
    local.delete("a/d")
    (tmp_path / "target").write_bytes(b"1")
    (index / "link").symlink_to(tmp_path / "target")
    local.delete("link")
    assert list(index.iterdir()) == []
    assert (tmp_path / "target").exists()


# Faults; more in test_storage_faults.py


def test_delete_s3_busy_is_tried_again_and_denied_is_an_error(s3_store, s3_server):  # noqa: F811
    fill(s3_store, "a")
    s3_server.faults.append(Fault("DELETE", "/a", 409, "OperationAborted", times=2))
    s3_store.delete("a")
    assert s3_server.faults[0].times == 0
    assert not s3_store.exists("a")
    s3_server.faults.append(Fault("DELETE", "/b", 403, "AccessDenied", times=9))
    with pytest.raises(StorageError, match="access denied"):
        s3_store.delete_many(["a", "b"])


@pytest.mark.parametrize(("times", "left"), [(2, 0), (99, 95)])
def test_create_exclusive_conflict_is_tried_again_for_a_while(s3_store, s3_server, times, left):  # noqa: F811
    fault = Fault("PUT", "/a.json", 409, "ConditionalRequestConflict", times)
    s3_server.faults.append(fault)
    if left:
        with pytest.raises(StorageError, match="stays unavailable"):
            s3_store.create_exclusive("a.json", b"mine")
    else:
        assert s3_store.create_exclusive("a.json", b"mine")
        assert s3_store.read("a.json") == b"mine"
    assert fault.times == left


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId"])
def test_s3_denied_is_a_storage_error_and_not_tried_again(s3_store, s3_server, code):  # noqa: F811
    s3_store.overwrite("a.json", b"1")
    for method in ("PUT", "HEAD", "GET"):
        s3_server.faults.append(Fault(method, "/a.json", 403, code, times=99))
    for act in (
        lambda: s3_store.create_exclusive("a.json", b"mine"),
        lambda: s3_store.overwrite("a.json", b"mine"),
        lambda: s3_store.read("a.json"),
        lambda: s3_store.open_input("a.json").read(),
    ):
        with pytest.raises(StorageError, match="access denied") as caught:
            act()
        assert s3_store.url("a.json") in caught.value.message
        assert "credentials" in caught.value.remedy
    assert s3_server.faults[0].times == 97


def test_s3_missing_bucket_is_a_storage_error(s3_bucket, tmp_path):  # noqa: F811
    uri, options = s3_bucket
    store = open_store(f"{uri}-not/index", options)
    (tmp_path / "file").touch()
    actions = [
        *(lambda act=act: act("a", b"") for act in (store.create_exclusive, store.overwrite)),
        *(lambda act=act: act("a") for act in (store.read, store.list, store.exists, store.find)),
        store.find,
        lambda: store.delete("a"),
        lambda: store.upload(tmp_path / "file", "a"),
        lambda: store.download("a", tmp_path / "copy"),
    ]
    for action in actions:
        with pytest.raises(StorageError, match="no such bucket") as caught:
            action()
        assert "Create it" in caught.value.remedy


def test_s3_unreachable_endpoint_is_a_storage_error():
    options = {
        "key": "k",
        "secret": "s",
        "client_kwargs": {"endpoint_url": "http://127.0.0.1:9", "region_name": "us-east-1"},
        "config_kwargs": {"retries": {"total_max_attempts": 1}},
    }
    with pytest.raises(StorageError, match="no connection") as caught:
        open_store("s3://bucket/index", options).read("a")
    assert "endpoint" in caught.value.remedy


def test_local_place_that_cannot_be_a_folder_is_a_storage_error(local, tmp_path):
    (tmp_path / "index").write_bytes(b"a file where a folder is expected")
    for write in (local.create_exclusive, local.overwrite):
        with pytest.raises(StorageError, match=r"index/a/b\.json: expected a usable location"):
            write("a/b.json", b"1")
    assert local.list("") == []
    # No one may create a folder there, root neither.
    with pytest.raises(StorageError, match="expected a usable location"):
        open_store("/proc/packvec-index").create_exclusive("a.json", b"1")
