from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import Fault, s3_bucket, s3_endpoint, s3_server  # noqa: F401

from actors.errors import StorageError
from pipelines.store import Store, open_store
from pipelines.store.files import remote_files_below

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    if request.param == "local":
        return open_store(str(tmp_path / "index"))
    uri, options = request.getfixturevalue("s3_bucket")
    return open_store(f"{uri}/some/index", options)


@pytest.fixture
def s3_store(s3_bucket):  # noqa: F811
    uri, options = s3_bucket
    return open_store(f"{uri}/index", options)


# Locations


def test_open_store_relative_path_stays_where_it_was_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = open_store("out/idx")
    monkeypatch.chdir("/")
    store.overwrite("a/b.json", b"1")
    assert (tmp_path / "out/idx/a/b.json").read_bytes() == b"1"
    assert store.url("a/b.json") == str(tmp_path / "out/idx/a/b.json")


@pytest.mark.parametrize(
    ("uri", "local"),
    [
        ("/abs/idx/", "/abs/idx"),
        ("file:///abs/idx", "/abs/idx"),
        ("/abs/a::b:c", "/abs/a::b:c"),
        ("s3://bucket/idx/", None),
        ("s3://bucket", None),
    ],
)
def test_open_store_known_location_is_local_or_not(uri, local):
    store = open_store(uri)
    assert store.is_local == (local is not None)
    assert store.uri == (local or uri.rstrip("/"))
    assert store.url("x/y") == f"{store.uri}/x/y"


@pytest.mark.parametrize(
    "uri",
    [
        "memory://idx",
        "http://host/idx",
        "ftp://host/idx",
        "simplecache::s3://bucket/idx",
        "s3://bucket/a::file://b",
        "s3:/bucket/idx",
        "s3://",
        "s3:///idx",
        "file://idx",
        "",
    ],
)
def test_open_store_other_location_is_refused(uri):
    with pytest.raises(StorageError, match=r"^expected a local path, s3://.*, found"):
        open_store(uri)


@pytest.mark.parametrize(
    ("uri", "driver", "extra"),
    [
        ("gs://bucket/idx", "gcsfs", "packvec[gcs]"),
        ("az://container/idx", "adlfs", "packvec[azure]"),
        ("abfs://container@account.dfs.core.windows.net/idx", "adlfs", "packvec[azure]"),
    ],
)
def test_open_store_missing_driver_names_the_extra(uri, driver, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, driver, None)  # importing it fails, installed or not
    with pytest.raises(StorageError, match="not installed") as caught:
        open_store(uri)
    assert extra in caught.value.remedy


def test_store_repr_shows_no_secret():
    store = open_store("s3://bucket/idx", {"key": "me", "secret": "hush"})
    assert "hush" not in repr(store)
    assert {store: 1}[open_store("s3://bucket/idx", {"key": "me", "secret": "hush"})] == 1


def test_store_pickled_works_in_another_process(store):
    store.overwrite("a.json", b"from here")
    script = (
        "import pickle, sys; store = pickle.loads(sys.stdin.buffer.read());"
        "print(store.read('a.json').decode(), store.create_exclusive('b.json', b'from there'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps(store),
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    assert done.stdout.split() == [b"from", b"here", b"True"]
    assert store.read("b.json") == b"from there"


# Reading


def test_read_missing_file_raises_file_not_found(store):
    with pytest.raises(FileNotFoundError):
        store.read("no/such.json")
    with pytest.raises(FileNotFoundError):
        store.read_many(["no/such.json"])
    with pytest.raises(FileNotFoundError):
        store.open_input("no/such.json")


def test_read_many_order_is_the_order_asked(store):
    names = [f"done/{n:02d}*[a].json" for n in (3, 1, 2, 1)]  # a glob would match, or sort
    for name in set(names):
        store.overwrite(name, name.encode())
    assert store.read_many(names) == [name.encode() for name in names]
    assert store.read_many([]) == []


def test_read_many_s3_reads_concurrently(s3_store, s3_server):  # noqa: F811
    # Each read waits, in the server's stead, until two are under way: one by one would never end.
    names = ["a", "b"]
    for name in names:
        s3_store.overwrite(name, name.encode())
    both = threading.Barrier(2, timeout=20)

    class Waiting(Store):
        def read(self, path: str) -> bytes:
            both.wait()
            return super().read(path)

    waiting = Waiting(s3_store.uri, s3_store.options)
    assert waiting.read_many(names) == [b"a", b"b"]


def test_exists_file_and_folder_only_file_counts(store):
    store.overwrite("a/b.json", b"")
    assert store.exists("a/b.json")
    assert not store.exists("a")
    assert not store.exists("a/c.json")
    assert store.read("a/b.json") == b""


def test_list_files_and_folders_are_apart_sorted_and_direct(store):
    for path in ("g/000002/manifest.json", "g/000001/manifest.json", "g/b.json", "g/a.json"):
        store.overwrite(path, b"1")
    store.overwrite("gx/other.json", b"1")
    assert store.list("g") == store.list("g/") == ["g/a.json", "g/b.json"]
    assert store.list_folders("g") == ["g/000001", "g/000002"]
    assert store.list_folders("") == ["g", "gx"]
    assert store.list("") == []
    assert store.list("g/a.json") == []


def test_list_missing_folder_is_empty(store):
    assert store.list("nothing") == []
    assert store.list_folders("nothing/here") == []
    assert store.list_folders("") == []


def test_list_written_by_someone_else_is_seen_at_once(store):
    store.overwrite("d/a", b"1")
    assert store.list("d") == ["d/a"]
    assert not store.exists("d/b")
    other = _another_client(store)
    other.pipe_file(store.path("d/b"), b"2")
    assert store.list("d") == ["d/a", "d/b"]
    assert store.exists("d/b")
    other.rm_file(store.path("d/a"))
    assert store.list("d") == ["d/b"]
    assert not store.exists("d/a")


def test_list_s3_folder_marker_is_no_file(s3_store):
    _another_client(s3_store).pipe_file(f"{s3_store.path('d')}/", b"")
    assert s3_store.list("d") == []


def test_list_local_linked_folder_is_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "index").mkdir()
    (tmp_path / "index/linked").symlink_to(tmp_path / "elsewhere")
    assert open_store(str(tmp_path / "index")).list_folders("") == ["linked"]


def _another_client(store: Store) -> fsspec.AbstractFileSystem:
    if store.is_local:
        return fsspec.filesystem("file")
    return fsspec.filesystem("s3", **store.options, skip_instance_cache=True)


def test_open_input_parquet_is_read_by_seeking(store, tmp_path):
    table = pa.table({"x": list(range(1000)), "y": [str(n) for n in range(1000)]})
    pq.write_table(table, tmp_path / "local.parquet", row_group_size=100)
    store.upload(tmp_path / "local.parquet", "data/part.parquet")
    with store.open_input("data/part.parquet") as file:
        assert file.seekable()
        assert pq.ParquetFile(file).read_row_group(7).equals(table.slice(700, 100))
    with store.filesystem.open(store.path("data/part.parquet"), "rb") as file:
        assert pq.read_table(file).equals(table)


def test_size_file_is_its_bytes_and_anything_else_is_missing(store):
    store.overwrite("a/b.json", b"12345")
    store.overwrite("a/empty", b"")
    assert (store.size("a/b.json"), store.size("a/empty")) == (5, 0)
    for path in ("a", "a/c.json", "b"):
        with pytest.raises(FileNotFoundError):
            store.size(path)


def test_find_files_at_any_depth_are_listed_with_sizes_sorted(store):
    paths = {"g/000001/manifest.json": 3, "g/.a.json.0123.tmp": 1, "gx/b": 2, "top": 0, "g/a*": 4}
    for path, size in paths.items():
        store.overwrite(path, b"x" * size)
    assert [(f.path, f.size) for f in store.find()] == sorted(paths.items())
    below = sorted((path, size) for path, size in paths.items() if path.startswith("g/"))
    for folder in ("g", "g/"):
        assert [(f.path, f.size) for f in store.find(folder)] == below
    assert [f.path for f in store.find("g/000001")] == ["g/000001/manifest.json"]


def test_find_missing_folder_or_a_file_is_empty(store):
    assert store.find() == store.find("nothing/here") == []
    store.overwrite("a", b"1")
    assert store.find("a") == []


def test_find_modified_is_when_it_was_written_in_utc(store):
    before = datetime.now(UTC) - timedelta(seconds=2)  # object stores round to a second
    store.overwrite("a/b", b"1")
    (file,) = store.find()
    assert before <= file.modified <= datetime.now(UTC) + timedelta(seconds=2)
    assert file.modified.utcoffset() == timedelta(0)


def test_find_local_modified_is_the_file_systems(tmp_path):
    (tmp_path / "old").touch()
    os.utime(tmp_path / "old", (1_000_000_000, 1_000_000_000))
    (file,) = open_store(str(tmp_path)).find()
    assert file.modified == datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC)


def test_find_local_links_are_followed_once_and_dangling_ones_left_out(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a").write_bytes(b"123")
    (tmp_path / "index").mkdir()
    (tmp_path / "index/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "index")
    (tmp_path / "index/dangling").symlink_to(tmp_path / "nothing")
    found = open_store(str(tmp_path / "index")).find()
    assert [(f.path, f.size) for f in found] == [("linked/a", 3)]


def test_find_s3_more_than_a_page_is_listed_whole_without_markers(
    s3_store,
    s3_server,  # noqa: F811
    monkeypatch,
):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    for n in range(8):
        s3_store.overwrite(f"d/{n}", b"1")
    _another_client(s3_store).pipe_file(f"{s3_store.path('d')}/", b"")
    del s3_server.requests[:]
    assert [f.path for f in s3_store.find()] == [f"d/{n}" for n in range(8)]
    assert len(s3_server.requests) >= 3


def test_find_written_by_someone_else_is_seen_at_once(store):
    store.overwrite("d/a", b"1")
    assert [f.path for f in store.find("d")] == ["d/a"]
    other = _another_client(store)
    other.pipe_file(store.path("d/b"), b"2")
    other.rm_file(store.path("d/a"))
    assert [f.path for f in store.find("d")] == ["d/b"]


def test_remote_files_without_a_time_are_a_storage_error():
    class NoTimes:
        def find(self, folder, detail):
            return {f"{folder}/a": {"type": "file", "size": 1, "LastModified": "yesterday"}}

    with pytest.raises(StorageError, match=r"bucket/a: expected a time of its last change"):
        remote_files_below(NoTimes(), "bucket")


def test_download_file_arrives_whole(store, tmp_path):
    content = bytes(range(256)) * 9000
    store.overwrite("data/part", content)
    store.download("data/part", tmp_path / "local")
    assert (tmp_path / "local").read_bytes() == content
    with pytest.raises(FileNotFoundError):
        store.download("data/other", tmp_path / "other")


# Writing


def test_create_exclusive_new_path_creates_it(store):
    assert store.create_exclusive("runs/r/done/0.json", b"mine")
    assert store.read("runs/r/done/0.json") == b"mine"


def test_create_exclusive_other_content_is_false_and_kept(store):
    store.create_exclusive("a.json", b"first")
    assert not store.create_exclusive("a.json", b"second")
    assert store.read("a.json") == b"first"


def test_create_exclusive_same_content_is_true(store):
    assert store.create_exclusive("a.json", b"mine")
    assert store.create_exclusive("a.json", b"mine")


def test_create_exclusive_race_of_threads_has_one_winner(store):
    racers = 8
    for race in range(5):
        start = threading.Barrier(racers, timeout=20)

        def create(racer: int, path=f"done/{race}.json", start=start) -> bool:
            start.wait()
            return store.create_exclusive(path, f"racer {racer}".encode())

        with ThreadPoolExecutor(racers) as pool:
            won = [*pool.map(create, range(racers))]
        assert won.count(True) == 1
        assert store.read(f"done/{race}.json") == f"racer {won.index(True)}".encode()
    assert len(store.list("done")) == 5


def test_create_exclusive_race_of_processes_has_one_winner(store):
    script = (
        "import os, pickle, sys; store = pickle.loads(bytes.fromhex(sys.argv[1]));"
        "store.exists('warm'); print('ready', flush=True); sys.stdin.readline();"
        "print(*[int(store.create_exclusive(f'done/{n}', b'%d' % os.getpid()))"
        " for n in range(20)])"
    )
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


def test_overwrite_existing_file_is_replaced(store):
    store.overwrite("leases/000001.beat", b"1 long")
    store.overwrite("leases/000001.beat", b"2")
    assert store.read("leases/000001.beat") == b"2"


def test_upload_file_arrives_whole_and_source_stays(store, tmp_path):
    local = tmp_path / "part.bin"
    local.write_bytes(bytes(range(256)) * 9000)
    store.upload(local, "data/r/part.bin")
    store.upload(str(local), "data/r/again.bin")
    assert store.read("data/r/part.bin") == local.read_bytes()
    local.write_bytes(b"reused")  # what was uploaded is a copy
    assert len(store.read("data/r/again.bin")) == 256 * 9000


def test_upload_missing_local_file_raises_file_not_found(store, tmp_path):
    with pytest.raises(FileNotFoundError):
        store.upload(tmp_path / "nothing", "data/x")


def test_write_local_leaves_no_temporary_files_and_respects_umask(tmp_path):
    store = open_store(str(tmp_path / "index"))
    (tmp_path / "local").write_bytes(b"x")
    store.create_exclusive("a", b"1")
    store.create_exclusive("a", b"2")
    store.overwrite("b", b"1")
    store.upload(tmp_path / "local", "c")
    assert sorted(p.name for p in (tmp_path / "index").iterdir()) == ["a", "b", "c"]
    (tmp_path / "plain").touch()
    plain = (tmp_path / "plain").stat().st_mode
    assert {p.stat().st_mode for p in (tmp_path / "index").iterdir()} == {plain}


def test_list_local_file_being_written_is_left_out(tmp_path):
    store = open_store(str(tmp_path))
    (tmp_path / ".a.json.0123.tmp").touch()
    assert store.list("") == []


# Removing


def test_delete_file_is_gone_and_again_is_no_error(store):
    store.overwrite("a/b", b"1")
    store.overwrite("a/bc", b"2")
    store.delete("a/b")
    assert not store.exists("a/b")
    store.delete("a/b")
    store.delete("never/was")
    assert [f.path for f in store.find()] == ["a/bc"]


def test_delete_glob_is_a_name_like_any_other(store):
    for name in ("a/[bc]*", "a/b1", "a/c"):
        store.overwrite(name, b"1")
    store.delete("a/[bc]*")
    assert store.list("a") == ["a/b1", "a/c"]


def test_delete_many_only_those_are_gone(store):
    for n in range(80):
        store.overwrite(f"d/{n:02d}", b"1")
    store.delete_many(f"d/{n:02d}" for n in range(0, 80, 2))
    assert store.list("d") == [f"d/{n:02d}" for n in range(1, 80, 2)]
    store.delete_many([*store.list("d"), "d/other"])
    assert store.find() == []
    store.delete_many([])


def test_delete_local_folders_left_empty_go_but_not_the_root(tmp_path):
    store = open_store(str(tmp_path / "index"))
    store.overwrite("a/b/c", b"1")
    store.overwrite("a/d", b"1")
    store.delete("a/b/c")
    assert sorted(p.name for p in (tmp_path / "index/a").iterdir()) == ["d"]
    store.delete("a/d")
    assert list((tmp_path / "index").iterdir()) == []


def test_delete_local_link_goes_and_its_target_stays(tmp_path):
    (tmp_path / "target").write_bytes(b"1")
    (tmp_path / "index").mkdir()
    (tmp_path / "index/link").symlink_to(tmp_path / "target")
    open_store(str(tmp_path / "index")).delete("link")
    assert not (tmp_path / "index/link").is_symlink()
    assert (tmp_path / "target").exists()


def test_delete_folder_is_a_storage_error_or_nothing(store):
    store.overwrite("a/b", b"1")
    with suppress(StorageError):  # object stores have no folders, and say nothing
        store.delete("a")
    assert store.exists("a/b")


def test_delete_s3_busy_is_tried_again_and_denied_is_an_error(s3_store, s3_server):  # noqa: F811
    s3_store.overwrite("a", b"1")
    s3_server.faults.append(Fault("DELETE", "/a", 409, "OperationAborted", times=2))
    s3_store.delete("a")
    assert s3_server.faults[0].times == 0
    assert not s3_store.exists("a")
    s3_server.faults.append(Fault("DELETE", "/b", 403, "AccessDenied", times=9))
    with pytest.raises(StorageError, match="access denied"):
        s3_store.delete_many(["a", "b"])


# Faults


def test_create_exclusive_conflict_is_tried_again(s3_store, s3_server):  # noqa: F811
    s3_server.faults.append(Fault("PUT", "/a.json", 409, "ConditionalRequestConflict", times=2))
    assert s3_store.create_exclusive("a.json", b"mine")
    assert s3_server.faults[0].times == 0
    assert s3_store.read("a.json") == b"mine"


def test_create_exclusive_answer_lost_is_still_ours(s3_store, s3_server):  # noqa: F811
    s3_server.faults.append(Fault("PUT", "/a.json", 500, "InternalError", after=True))
    assert s3_store.create_exclusive("a.json", b"mine")
    assert s3_server.faults[0].times == 0


def test_create_exclusive_conflict_for_ever_ends_in_storage_error(s3_store, s3_server):  # noqa: F811
    s3_server.faults.append(Fault("PUT", "/a.json", 409, "ConditionalRequestConflict", times=99))
    with pytest.raises(StorageError, match="stays unavailable"):
        s3_store.create_exclusive("a.json", b"mine")
    assert s3_server.faults[0].times == 95


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (403, "InvalidAccessKeyId")])
def test_write_s3_denied_is_a_storage_error(status, code, s3_store, s3_server):  # noqa: F811
    s3_server.faults.append(Fault("PUT", "/a.json", status, code, times=99))
    for write in (s3_store.create_exclusive, s3_store.overwrite):
        with pytest.raises(StorageError, match="access denied") as caught:
            write("a.json", b"mine")
        assert s3_store.url("a.json") in caught.value.message
        assert "credentials" in caught.value.remedy
    assert s3_server.faults[0].times == 97  # not tried again


def test_read_s3_denied_is_a_storage_error(s3_store, s3_server):  # noqa: F811
    s3_store.overwrite("a.json", b"1")
    s3_server.faults.append(Fault("HEAD", "/a.json", 403, "AccessDenied", times=99))
    s3_server.faults.append(Fault("GET", "/a.json", 403, "AccessDenied", times=99))
    with pytest.raises(StorageError, match="access denied"):
        s3_store.read("a.json")
    with pytest.raises(StorageError, match="access denied"):
        s3_store.open_input("a.json").read()


def test_s3_missing_bucket_is_a_storage_error(s3_bucket, tmp_path):  # noqa: F811
    uri, options = s3_bucket
    store = open_store(f"{uri}-not/index", options)
    (tmp_path / "file").touch()
    actions = [
        lambda: store.create_exclusive("a", b""),
        lambda: store.overwrite("a", b""),
        lambda: store.upload(tmp_path / "file", "a"),
        lambda: store.read("a"),
        lambda: store.list("a"),
        lambda: store.exists("a"),
        lambda: store.find("a"),
        lambda: store.find(),
        lambda: store.delete("a"),
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


def test_local_file_in_the_way_is_a_storage_error(tmp_path):
    (tmp_path / "index").write_bytes(b"a file where a folder is expected")
    store = open_store(str(tmp_path / "index"))
    for write in (store.create_exclusive, store.overwrite):
        with pytest.raises(StorageError, match=r"index/a/b\.json"):
            write("a/b.json", b"1")
    assert store.list("") == []


def test_local_folder_unwritable_is_a_storage_error():
    store = open_store("/proc/packvec-index")  # no one may create a folder there, root neither
    with pytest.raises(StorageError, match="expected a usable location"):
        store.create_exclusive("a.json", b"1")
