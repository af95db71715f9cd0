"""An S3 server on this machine, over real HTTP: moto, made atomic, with faults on demand.

Use its fixtures by importing them: `from s3_server import s3_bucket, s3_endpoint`.
"""

from __future__ import annotations

import functools
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from pipelines.store import Store

KEY, SECRET, REGION = "testing", "testing", "us-east-1"

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@dataclass
class Fault:
    """The next `times` requests of this method to a path that ends so are answered by an error."""

    method: str
    suffix: str
    status: int
    code: str
    times: int = 1
    after: bool = False
    """The request is served, only its answer is lost."""

    def takes(self, environ: dict[str, Any]) -> bool:
        return (
            self.times > 0
            and environ["REQUEST_METHOD"] == self.method
            and environ["PATH_INFO"].endswith(self.suffix)
        )


@dataclass(frozen=True)
class S3Server:
    """A running server: where it is, and the faults still to come."""

    endpoint: str
    faults: list[Fault]
    requests: list[tuple[str, str]]
    """(method, path) of every request so far."""
    stop: Callable[[], None]

    @property
    def storage_options(self) -> dict[str, Any]:
        """For s3fs; each caller gets a copy of his own."""
        return {
            "key": KEY,
            "secret": SECRET,
            "client_kwargs": {"endpoint_url": self.endpoint, "region_name": REGION},
        }


def start_server() -> S3Server:
    """Start a server on a free port of the loopback interface."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    faults: list[Fault] = []
    requests: list[tuple[str, str]] = []
    # werkzeug asks its `app` for every request, so a running server can be wrapped.
    moto._server.app = _wrap(moto._server.app, faults, requests)
    return S3Server(f"http://{host}:{port}", faults, requests, moto.stop)


def start_s3() -> tuple[str, Callable[[], None]]:
    """(endpoint URL, a function that stops it), for those who want no faults."""
    server = start_server()
    return server.endpoint, server.stop


def _wrap(app: App, faults: list[Fault], requests: list[tuple[str, str]]) -> App:
    # moto looks for a key, then writes it: two conditional PUTs at once may both succeed there,
    # which S3 excludes.
    one_at_a_time = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with one_at_a_time:
            requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
            fault = next((f for f in faults if f.takes(environ)), None)
            if fault is None:
                return [*app(environ, start_response)]
            fault.times -= 1
            if fault.after:
                [*app(environ, lambda *_: None)]
            else:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(f"{fault.status} {fault.code}", [("Content-Type", "application/xml")])
            body = f"<Error><Code>{fault.code}</Code><Message>{fault.code}</Message></Error>"
            return [body.encode()]

    return serve


@functools.cache
def _shared() -> S3Server:
    # One for the whole process, in however many files its fixtures are imported; its threads are
    # daemons and end with the process.
    return start_server()


@pytest.fixture
def s3_server() -> Iterator[S3Server]:
    """The server behind `s3_bucket`; faults left over are dropped."""
    yield _shared()
    _shared().faults.clear()


@pytest.fixture(scope="session")
def s3_endpoint() -> str:
    return _shared().endpoint


@pytest.fixture
def s3_bucket(s3_endpoint: str) -> tuple[str, dict[str, Any]]:
    """(uri, storage_options) of a bucket of one's own."""
    bucket = f"test-{uuid.uuid4().hex}"
    client = boto3.client(
        "s3",
        endpoint_url=s3_endpoint,
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name=REGION,
    )
    client.create_bucket(Bucket=bucket)
    client.close()
    return f"s3://{bucket}", _shared().storage_options


def upload_folder(folder: Path, store: Store) -> None:
    """Every file below a folder, at the same place in a store."""
    for path in folder.rglob("*"):
        if path.is_file():
            store.upload(path, path.relative_to(folder).as_posix())
