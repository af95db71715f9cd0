"""What lies below a folder of a store, with sizes and times: for looking after an index.

Reading an index never lists anything; see storage.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec

from actors.errors import StorageError

# What the drivers of S3, GCS and Azure call the time of the last change.
_TIMES = ("LastModified", "mtime", "last_modified")


@dataclass(frozen=True)
class StoredFile:
    """A file as a listing shows it."""

    path: str
    size: int
    """Bytes."""
    modified: datetime
    """By the store's clock, in UTC; object stores round it to a second."""


def files_below(folder: str) -> list[StoredFile]:
    """Every file below a local folder, dot files too; links are followed, each folder once."""
    return list(_walk(folder, "", set())) if Path(folder).is_dir() else []


def _walk(folder: str, prefix: str, seen: set[tuple[int, int]]) -> Iterator[StoredFile]:
    status = os.stat(folder)  # noqa: PTH116  what scandir gives are strings
    if (status.st_dev, status.st_ino) in seen:
        return  # a link to a folder above
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if entry.is_dir():
                    yield from _walk(entry.path, f"{prefix}{entry.name}/", seen)
                elif entry.is_file():
                    found = entry.stat()
                    modified = datetime.fromtimestamp(found.st_mtime, UTC)
                    yield StoredFile(prefix + entry.name, found.st_size, modified)
            except FileNotFoundError:
                continue  # it went meanwhile


def remote_files_below(filesystem: fsspec.AbstractFileSystem, folder: str) -> list[StoredFile]:
    """Every object below a folder of an object store.

    Raises:
        StorageError: the driver does not say when they were written.
    """
    prefix = f"{folder.rstrip('/')}/"
    found = filesystem.find(folder, detail=True)
    return [
        StoredFile(name.removeprefix(prefix), info["size"], _modified(name, info))
        for name, info in found.items()
        # A key that ends in "/" stands for a folder.
        if info["type"] == "file" and name.startswith(prefix) and not name.endswith("/")
    ]


def _modified(name: str, info: dict[str, Any]) -> datetime:
    times = [info[key] for key in _TIMES if isinstance(info.get(key), datetime)]
    if not times:
        raise StorageError(f"{name}: expected a time of its last change, found none.")
    time: datetime = times[0]
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def remote_names(filesystem: fsspec.AbstractFileSystem, folder: str, kind: str) -> list[str]:
    """Names directly in a folder of an object store; kind: "file" or "directory"."""
    prefix = f"{folder}/"
    found = [e["name"] for e in filesystem.ls(folder, detail=True) if e["type"] == kind]
    # ls of a file lists that file; a key that ends in "/" stands for the folder itself.
    names = (n.removeprefix(prefix).rstrip("/") for n in found if n.startswith(prefix))
    return [name for name in names if name]
