"""A file of an index as a local one: to be read at leisure, and as its record says."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actors.errors import StorageError
from actors.fingerprint import file_sha256
from pipelines.records import FileRecord
from pipelines.storage import Store


@contextmanager
def local_file(store: Store, path: str) -> Iterator[Path]:
    """The file itself where the store is local, else a copy that is gone at the end.

    Raises:
        FileNotFoundError: there is none.
    """
    if store.is_local:
        yield Path(store.path(path))
        return
    with tempfile.TemporaryDirectory(prefix="packvec-") as scratch:
        local = Path(scratch) / "file.parquet"
        store.download(path, local)
        yield local


@contextmanager
def checked_file(store: Store, record: FileRecord) -> Iterator[Path]:
    """`local_file`, its checksum compared first.

    Raises:
        StorageError: it is gone, or its bytes are not those that were committed.
    """
    try:
        with local_file(store, record.path) as local:
            found = file_sha256(local)
            if found == record.sha256:
                yield local
                return
    except FileNotFoundError:
        found = "no file"
    raise StorageError(
        f"{store.url(record.path)}: expected sha256 {record.sha256}, found {found}.",
        "python -m pipelines.verify_index --deep lists all that is damaged.",
    )
