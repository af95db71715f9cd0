"""Reading documents through a network that breaks: each once, in order; rejects only in the end."""

from __future__ import annotations

import gzip
import random

import aiohttp
import fsspec
import pytest
import s3fs
from fault_proxy import DOWNLOAD_KINDS, FaultProxy
from reading import http_place, source_of
from tenacity import wait_random
from test_any_format import as_csv, as_jsonl, as_parquet

from actors.errors import SourceError, UnreadableUnitError
from pipelines.source.formats import base
from pipelines.store import faults as retries

READ_TIMEOUT = 0.5
FOR_EVER = 10_000
_random = random.Random(3)  # texts that do not compress: several requests
ROWS = [{"id": f"d{i}", "text": f"text {i} {_random.randbytes(60).hex()}"} for i in range(1500)]
FILES = {
    "docs.parquet": as_parquet(ROWS, row_group_size=750),
    "docs.jsonl": as_jsonl(ROWS),
    "docs.jsonl.gz": gzip.compress(as_jsonl(ROWS), 1),
    "docs.csv": as_csv(ROWS),
}


@pytest.fixture(params=["s3", "http-ranges", "http"])
def place(request, tmp_path, monkeypatch):
    """(uri of a folder behind a proxy, storage options, the proxy, put); small requests."""
    monkeypatch.setattr(retries, "_WAIT", wait_random(0, 0.02))
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)  # what the store raises arrives
    monkeypatch.setattr(base, "_BLOCK_BYTES", 16 << 10)
    monkeypatch.setattr(base, "_BUFFER_BYTES", 4 << 10)
    if request.param == "s3":
        uri, options = request.getfixturevalue("s3_bucket")
        direct = fsspec.filesystem("s3", **options)
        with FaultProxy(options["client_kwargs"]["endpoint_url"]) as proxy:
            client = options["client_kwargs"] | {"endpoint_url": proxy.endpoint}
            config = {"read_timeout": READ_TIMEOUT, "retries": {"total_max_attempts": 1}}
            options = options | {"client_kwargs": client, "config_kwargs": config}
            yield uri, options, proxy, lambda name, data: direct.pipe_file(f"{uri}/{name}", data)
        return
    url, stop = http_place(tmp_path, request.param)
    timeout = aiohttp.ClientTimeout(total=None, sock_read=READ_TIMEOUT)
    with FaultProxy(url) as proxy:
        options = {"client_kwargs": {"timeout": timeout}}
        yield proxy.endpoint, options, proxy, lambda name, data: (tmp_path / name).write_bytes(data)
    stop()


def planned(place, name, content):
    uri, options, proxy, put = place
    put(name, content)
    proxy.calm()
    source = source_of(f"{uri}/{name}", storage_options=options)
    units = source.units(source.list_files())
    proxy.calm()
    return source, units


def assert_each_once(source, units):
    batches = (batch for unit in units for batch in source.read(unit))
    ids = [doc_id for batch in batches for doc_id in batch.table["doc_id"].to_pylist()]
    assert ids == [row["id"] for row in ROWS]


@pytest.mark.parametrize("kind", DOWNLOAD_KINDS)
def test_read_through_a_fault_gives_each_document_once(place, kind):
    proxy = place[2]
    for name, content in FILES.items():
        source, units = planned(place, name, content)
        if kind == "stall":
            proxy.inject(kind, "GET")
        else:
            proxy.inject(kind, "GET", every=2, times=1 if kind == "stall_answer" else FOR_EVER)
        proxy.inject("drop", "HEAD", every=3, times=2)
        assert_each_once(source, units)
        assert proxy.injected[kind] >= 1


@pytest.mark.parametrize("kind", DOWNLOAD_KINDS)
def test_read_through_a_fault_that_never_ends_is_an_unreadable_unit(place, kind):
    source, units = planned(place, "docs.jsonl", FILES["docs.jsonl"])
    place[2].inject(kind, times=FOR_EVER)
    with pytest.raises(UnreadableUnitError, match=r"docs\.jsonl: cannot be read") as caught:
        assert_each_once(source, units)
    assert "\n" not in str(caught.value)
    assert "run again" in caught.value.remedy


def test_read_short_text_that_stalls_for_ever_is_no_damaged_document(place):
    """Of damage a document is rejected for good."""
    source, units = planned(place, "a.txt.gz", gzip.compress(b"hello " * 100))
    place[2].inject("stall_answer", "GET", times=FOR_EVER)
    with pytest.raises(UnreadableUnitError):
        assert_each_once(source, units)


def test_plan_and_read_through_random_faults_gives_each_document_once(place):
    uri, options, proxy, put = place
    for name, content in FILES.items():
        put(name, content)
        proxy.calm()
        proxy.inject_at_random(seed=7, rate=0.06)
        source = source_of(f"{uri}/{name}", storage_options=options)
        assert_each_once(source, source.units(source.list_files()))
        assert proxy.injected


def test_plan_of_a_store_that_never_answers_is_one_line(place):
    uri, options, proxy, put = place
    put("docs.jsonl", FILES["docs.jsonl"])
    proxy.inject("slow_down", times=FOR_EVER)
    with pytest.raises(SourceError, match=r"expected to read .*, found ") as caught:
        source_of(f"{uri}/docs.jsonl", storage_options=options).list_files()
    assert "\n" not in str(caught.value)
