"""Documents read through a source, and places to read them from; used by the tests of formats."""

from __future__ import annotations

import bz2
import functools
import gzip
import http.server
import re
import threading
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from actors.errors import UnreadableUnitError
from pipelines.config.sections import SourceConfig
from pipelines.source import Source

COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}
"""How the bytes of a file are written, by what its name ends with."""


def source_of(uri, *, columns=None, **more):
    uri = [str(each) for each in uri] if isinstance(uri, list | tuple) else str(uri)
    return Source(SourceConfig(uri=uri, columns=columns or {}, **more))


def rows_of(batches):
    """Documents as dicts; those that are none have their reject code as `fault`."""
    for batch in batches:
        for number, row in enumerate(batch.table.to_pylist()):
            fault = batch.faults.get(number)
            yield row | ({"fault": fault[0], "detail": fault[1]} if fault else {})


def documents(uri, **how):
    """All documents of a source, unit by unit, from listing to reading."""
    source = source_of(uri, **how)
    units = source.units(source.list_files())
    return [row for unit in units for row in rows_of(source.read(unit))]


def column(rows, name="text"):
    return [row[name] for row in rows]


def ids_before_the_break(source, unit):
    """(ids of the documents that come out of a damaged unit, the error that ends them)."""
    ids = []
    try:
        for batch in source.read(unit):
            assert not batch.faults
            ids += batch.table["doc_id"].to_pylist()
    except UnreadableUnitError as error:
        return ids, error.message
    return pytest.fail(f"{unit} was read to its end")


class _Files(http.server.SimpleHTTPRequestHandler):
    """Python's own: without ranges."""

    def log_message(self, *_):
        pass


class _FilesWithRanges(_Files):
    def do_GET(self):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not wanted or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        first, last = int(wanted[1]), int(wanted[2])
        part = content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


class _FilesOfUnknownSize(_Files):
    def send_header(self, keyword, value):
        if keyword not in ("Content-Length", "Last-Modified"):
            super().send_header(keyword, value)


_HANDLERS = {"http-ranges": _FilesWithRanges, "http": _Files, "http-bare": _FilesOfUnknownSize}


def http_place(folder, kind):
    """(URL of a folder, a function that stops the server)."""
    handler = functools.partial(_HANDLERS[kind], directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()

    def stop():
        server.shutdown()
        server.server_close()
        thread.join()

    return f"http://127.0.0.1:{server.server_port}", stop


@pytest.fixture(params=["local", "s3", *_HANDLERS])
def place(request, tmp_path):
    """A folder for documents, in each kind of store: (uri, storage options, put(name, bytes))."""
    stop, options = None, {}
    if request.param == "s3":
        bucket, options = request.getfixturevalue("s3_bucket")
        uri = f"{bucket}/some/docs"
        filesystem = fsspec.core.url_to_fs(uri, **options)[0]

        def put(name, content):
            filesystem.pipe_file(f"{uri}/{name}", content)
    else:
        folder = tmp_path / "docs"
        folder.mkdir()

        def put(name, content):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

        uri = str(folder)
        if request.param != "local":
            uri, stop = http_place(folder, request.param)
    yield uri, options, put
    if stop:
        stop()


def fill(folder, files):
    """A folder of these files, name -> bytes or text."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def outcomes(rows):
    """(doc_id, text or reject code) of each document."""
    return [(row["doc_id"], row.get("fault") or row["text"]) for row in rows]
