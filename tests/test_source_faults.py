"""Reading documents through a network that breaks: each once, in order; rejects only in the end."""

from __future__ import annotations

import gzip
import json
import random

import aiohttp
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from fault_proxy import DOWNLOAD_KINDS, FaultProxy
from reading import http_place, source_of
from tenacity import wait_random

from actors.errors import SourceError, UnreadableUnitError
from pipelines.source.formats import base
from pipelines.store import faults as retries

N = 1500
READ_TIMEOUT = 0.5
FOR_EVER = 10_000
IDS = [f"d{i}" for i in range(N)]
_random = random.Random(3)  # texts that do not compress: several requests
TEXTS = [f"text {i} {_random.randbytes(60).hex()}" for i in range(N)]


def parquet_bytes():
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": IDS, "text": TEXTS}), sink, row_group_size=N // 2)
    return sink.getvalue().to_pybytes()


LINES = b"".join(
    json.dumps({"id": i, "text": t}).encode() + b"\n" for i, t in zip(IDS, TEXTS, strict=True)
)
CSV = "".join(["id,text\n", *(f"{i},{t}\n" for i, t in zip(IDS, TEXTS, strict=True))]).encode()
FILES = {
    "docs.parquet": parquet_bytes(),
    "docs.jsonl": LINES,
    "docs.jsonl.gz": gzip.compress(LINES, 1),
    "docs.csv": CSV,
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
        filesystem = fsspec.filesystem("s3", **options)
        with FaultProxy(options["client_kwargs"]["endpoint_url"]) as proxy:
            client = options["client_kwargs"] | {"endpoint_url": proxy.endpoint}
            config = {"read_timeout": READ_TIMEOUT, "retries": {"total_max_attempts": 1}}
            options = options | {"client_kwargs": client, "config_kwargs": config}
            yield (
                uri,
                options,
                proxy,
                lambda name, data: filesystem.pipe_file(f"{uri}/{name}", data),
            )
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
    source = source_of(f"{uri}/{name}", storage_options=options)
    units = source.units(source.list_files())
    proxy.calm()
    return source, units


def ids_of(source, units):
    return [
        doc_id
        for unit in units
        for batch in source.read(unit)
        for doc_id in batch.table["doc_id"].to_pylist()
    ]


@pytest.mark.parametrize("kind", DOWNLOAD_KINDS)
@pytest.mark.parametrize("name", FILES)
def test_read_through_a_fault_gives_each_document_once(place, name, kind):
    source, units = planned(place, name, FILES[name])
    proxy = place[2]
    if kind == "stall":
        proxy.inject(kind, "GET")
    elif kind == "stall_answer":
        proxy.inject(kind, "GET", every=2)
    else:
        proxy.inject(kind, "GET", every=2, times=FOR_EVER)
    proxy.inject("drop", "HEAD", every=3, times=2)
    assert ids_of(source, units) == IDS
    assert proxy.injected[kind] >= 1


@pytest.mark.parametrize("kind", DOWNLOAD_KINDS)
def test_read_through_a_fault_that_never_ends_is_an_unreadable_unit(place, kind):
    source, units = planned(place, "docs.jsonl", FILES["docs.jsonl"])
    place[2].inject(kind, times=FOR_EVER)
    with pytest.raises(UnreadableUnitError, match=r"docs\.jsonl: cannot be read") as caught:
        ids_of(source, units)
    assert "\n" not in str(caught.value)
    assert "run again" in caught.value.remedy


def test_read_short_text_that_stalls_for_ever_is_no_damaged_document(place):
    """Of damage a document is rejected for good."""
    source, units = planned(place, "a.txt.gz", gzip.compress(b"hello " * 100))
    place[2].inject("stall_answer", "GET", times=FOR_EVER)
    with pytest.raises(UnreadableUnitError):
        ids_of(source, units)


def test_plan_and_read_through_random_faults_gives_each_document_once(place):
    uri, options, proxy, put = place
    for name, content in FILES.items():
        put(name, content)
    for name in FILES:
        proxy.calm()
        proxy.inject_at_random(seed=7, rate=0.06)
        source = source_of(f"{uri}/{name}", storage_options=options)
        assert ids_of(source, source.units(source.list_files())) == IDS
        assert proxy.injected


def test_plan_of_a_store_that_never_answers_is_one_line(place):
    uri, options, proxy, put = place
    put("docs.jsonl", LINES)
    proxy.inject("slow_down", times=FOR_EVER)
    with pytest.raises(SourceError, match=r"expected a readable place at .*, found ") as caught:
        source_of(f"{uri}/docs.jsonl", storage_options=options).list_files()
    assert "\n" not in str(caught.value)
