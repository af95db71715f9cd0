"""The store through a network that breaks: right bytes, or one line and a remedy in the end."""

from __future__ import annotations

import io
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from fault_proxy import DOWNLOAD_KINDS, KINDS, UPLOAD_KINDS, FaultProxy
from s3_server import Fault, s3_bucket, s3_endpoint, s3_server  # noqa: F401
from tenacity import wait_random

from actors.errors import StorageError
from pipelines.store import faults as retries
from pipelines.store import open_store

BIG = os.urandom(300_000)
TABLE = pa.table({"x": list(range(20_000)), "y": [str(n) for n in range(20_000)]})
READ_TIMEOUT = 0.5
FOR_EVER = 10_000


@pytest.fixture(scope="module")
def proxy(s3_endpoint):  # noqa: F811
    with FaultProxy(s3_endpoint) as proxy:
        yield proxy


@pytest.fixture
def stores(proxy, s3_bucket, tmp_path, monkeypatch):  # noqa: F811
    """(a store through the proxy, the same without), with waits too short to be noticed."""
    monkeypatch.setattr(retries, "_WAIT", wait_random(0, 0.02))
    proxy.calm()
    uri, options = s3_bucket
    direct = open_store(f"{uri}/index", options)
    direct.overwrite("d/big", BIG)
    for name in ("d/a", "d/b", "d/deep/c"):
        direct.overwrite(name, name.encode())
    pq.write_table(TABLE, tmp_path / "table.parquet", row_group_size=5000)
    direct.upload(tmp_path / "table.parquet", "d/table.parquet")
    behind = {**options, "client_kwargs": {**options["client_kwargs"]}}
    behind["client_kwargs"]["endpoint_url"] = proxy.endpoint
    behind["config_kwargs"] = {"read_timeout": READ_TIMEOUT, "connect_timeout": 1}
    return open_store(f"{uri}/index", behind), direct


@pytest.fixture
def bare(stores, monkeypatch):
    """The same, whose drivers try nothing again (but aiohttp, once): what they raise arrives."""
    store, direct = stores
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    store.options["config_kwargs"]["retries"] = {"total_max_attempts": 1}
    return store, direct


def times_of(kind):
    """So often that what the store must survive is more than aiohttp does by itself."""
    return {"drop": 4, "cut_upload": 4, "lose_answer": 4, "stall": 1}.get(kind, 2)


def read_table(store):
    with store.open_input("d/table.parquet") as file:
        return pq.read_table(file)


def read_by_seeking(store):
    with store.open_input("d/big") as file:
        file.seek(-1000, io.SEEK_END)
        tail = file.read()
        file.seek(10)
        return file.read(20), tail, file.tell()


READS = {
    "read": (lambda store: store.read("d/big"), BIG),
    "read_many": (lambda store: store.read_many(["d/b", "d/big", "d/a"]), [b"d/b", BIG, b"d/a"]),
    "list": (lambda s: s.list("d"), ["d/a", "d/b", "d/big", "d/table.parquet"]),
    "list_folders": (lambda store: store.list_folders("d"), ["d/deep"]),
    "exists": (lambda store: (store.exists("d/big"), store.exists("d/none")), (True, False)),
    "open_input": (read_by_seeking, (BIG[10:30], BIG[-1000:], 30)),
    "open_input parquet": (read_table, TABLE),
}


@pytest.mark.parametrize("kind", DOWNLOAD_KINDS)
def test_store_read_through_a_fault_gives_the_right_bytes(bare, proxy, kind):
    for action, (act, expected) in READS.items():
        proxy.calm()
        proxy.inject(kind, times=times_of(kind))
        assert act(bare[0]) == expected, action
        assert proxy.injected[kind] == times_of(kind), action


@pytest.mark.parametrize("kind", UPLOAD_KINDS)
def test_store_write_through_a_fault_arrives_whole(bare, proxy, tmp_path, kind):
    store, direct = bare
    (tmp_path / "local").write_bytes(BIG)
    for act, source in ((store.overwrite, BIG), (store.upload, tmp_path / "local")):
        proxy.calm()
        proxy.inject(kind, "PUT", times=times_of(kind))
        act(*(("new", source) if source is BIG else (source, "new")))
        assert proxy.injected[kind] == times_of(kind)
        assert direct.read("new") == BIG
        direct.delete("new")


@pytest.mark.parametrize("kind", UPLOAD_KINDS)
def test_create_exclusive_through_a_fault_knows_whose_file_it_is(bare, proxy, kind):
    """Also where the look at whose it is fails too."""
    store, direct = bare
    direct.create_exclusive("theirs", b"theirs")
    for name, mine in (("theirs", False), ("new", True)):
        proxy.calm()
        proxy.inject(kind, "PUT", times=times_of(kind))
        proxy.inject("cut_answer", "GET", name)
        assert store.create_exclusive(name, b"mine") == mine
        assert proxy.injected[kind] == times_of(kind)
    assert proxy.injected["cut_answer"] == (kind == "lose_answer")  # only then there is a look
    assert direct.read_many(["theirs", "new"]) == [b"theirs", b"mine"]


@pytest.mark.parametrize("times", [1, 2])
def test_upload_in_parts_whose_end_is_served_and_not_answered_arrives(
    stores, proxy, tmp_path, monkeypatch, times
):
    # The driver asks for the end again, of an upload that is no more.
    monkeypatch.setattr(s3fs.core, "calculate_chunksize", lambda *_, **__: 5 << 20)
    store, direct = stores
    content = os.urandom(11 << 20)
    (tmp_path / "local").write_bytes(content)
    proxy.inject("lose_answer", "POST", "uploadId=", times=times)
    store.upload(tmp_path / "local", "large")
    assert direct.read("large") == content
    assert proxy.injected == {"lose_answer": times}


@pytest.mark.parametrize("kind", KINDS)
def test_fault_that_never_ends_is_one_line_and_a_remedy(bare, proxy, kind):
    store, direct = bare
    proxy.inject(kind, times=FOR_EVER)
    started = time.monotonic()
    act = store.create_exclusive if kind in UPLOAD_KINDS else lambda path, _: store.read("d/big")
    with pytest.raises(StorageError, match="expected a usable location, found") as caught:
        act("new", b"mine")
    assert time.monotonic() - started < 10
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    assert store.uri in caught.value.message
    if kind != "lose_answer":
        assert not direct.exists("new")


@pytest.mark.parametrize("kind", DOWNLOAD_KINDS)
def test_open_input_fault_that_never_ends_is_a_storage_error(bare, proxy, kind):
    store, _ = bare
    with store.open_input("d/table.parquet") as file:
        parquet = pq.ParquetFile(file, pre_buffer=True)
        file._file.cache.cache = b""  # what was read ahead
        file._file.cache.start = file._file.cache.end = 0
        proxy.inject(kind, times=FOR_EVER)
        with pytest.raises(StorageError, match=r"found (no connection|a store that stays)"):
            parquet.read()


def test_store_that_is_full_says_so(bare, s3_server):  # noqa: F811
    _, direct = bare
    s3_server.faults.append(Fault("PUT", "/a", 507, "XMinioStorageFull", times=FOR_EVER))
    with pytest.raises(StorageError, match="no space left") as caught:
        direct.overwrite("a", b"1")
    assert "finished slices are kept" in caught.value.remedy


def test_store_of_many_threads_through_random_faults_loses_and_mixes_nothing(stores, proxy):
    """With all the drivers' own attempts, as in a run."""
    store, direct = stores
    proxy.inject_at_random(seed=20, rate=0.2)

    def work(worker):
        own = [store.create_exclusive(f"done/{worker}-{n}", b"%d" % worker) for n in range(4)]
        raced = [store.create_exclusive(f"raced/{n}", b"%d" % worker) for n in range(4)]
        table = read_table(store)
        assert table.equals(TABLE)
        assert store.read("d/big") == BIG
        return own, raced

    with ThreadPoolExecutor(16) as pool:
        done = [*pool.map(work, range(16))]
    assert all(all(own) for own, _ in done)
    for n in range(4):
        assert [raced[n] for _, raced in done].count(True) == 1
        winner = [raced[n] for _, raced in done].index(True)
        assert direct.read(f"raced/{n}") == b"%d" % winner
    assert len(direct.list("done")) == 64
    assert sum(proxy.injected.values()) > 20
    assert len(proxy.injected) >= 6
