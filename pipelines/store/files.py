"""Whole files on a local disk: durable when written, and created exclusively where that matters.

Durable also when removed.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec

from actors.errors import StorageError
from pipelines.store.faults import FAULTS, fault_of


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for files in the making, gone at the end.

    Raises:
        StorageError: its disk is full, or nothing may be written there.
    """
    with (
        local_disk(tempfile.gettempdir()),
        tempfile.TemporaryDirectory(prefix="packvec-") as folder,
    ):
        yield Path(folder)


@contextmanager
def local_disk(folder: str) -> Iterator[None]:
    """A StorageError instead of the operating system's when a folder of this machine is full.

    Or when nothing may be written there.
    """
    try:
        yield
    except OSError as error:
        fault = fault_of(error)
        if fault not in ("full", "access"):
            raise
        what, remedy = FAULTS[fault]
        raise StorageError(
            f"{folder}: expected a folder for temporary files, found {what} ({error}).",
            f"{remedy} TMPDIR names another folder.",
        ) from error


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of the bytes of a file, whatever it is called."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put_local(target: Path, source: bytes | Path, *, exclusive: bool) -> bool:
    """Write a whole file durably; exclusive: unless there is one with other content."""
    _make_folder(target.parent)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    created = True
    try:
        with temporary.open("xb") as file:
            if isinstance(source, bytes):
                file.write(source)
            else:
                with source.open("rb") as finished:
                    shutil.copyfileobj(finished, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        if not exclusive:
            temporary.replace(target)
        else:
            created = _link(temporary, target) or target.read_bytes() == source
    finally:
        temporary.unlink(missing_ok=True)
    _fsync_folder(target.parent)
    return created


def _link(source: Path, target: Path) -> bool:
    # Rename overwrites, O_EXCL shows half a file.
    try:
        target.hardlink_to(source)
    except FileExistsError:
        return False
    except OSError as error:
        raise StorageError(
            f"{target}: expected a file system with hard links, found none ({error}).",
            "Use a local disk or object storage.",
        ) from error
    return True


def remove_local(root: Path, path: str) -> None:
    """Remove a file durably, and the folders below `root` that it leaves empty; missing is fine."""
    target = root / path
    target.unlink(missing_ok=True)
    with suppress(FileNotFoundError):  # another thread has removed the folder too
        _fsync_folder(target.parent)
    for folder in target.relative_to(root).parents[:-1]:
        try:
            (root / folder).rmdir()
        except OSError:
            break  # not empty


def local_names(folder: str, kind: str) -> list[str]:
    """Names in a folder; kind: "file" or "directory"."""
    # Not fs.ls: it does not follow links, and older ones fail when a file vanishes meanwhile.
    is_kind = Path.is_file if kind == "file" else Path.is_dir
    try:
        return [entry.name for entry in Path(folder).iterdir() if is_kind(entry)]
    except NotADirectoryError:
        return []


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _fsync_folder(folder.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
