"""Writes, lists and removes whole files, durably on a local disk; lists files of object stores."""

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
    """Create a temporary folder, removed at the end.

    Raises:
        StorageError: the disk is full, or writing is not permitted.
    """
    with (
        local_disk(tempfile.gettempdir()),
        tempfile.TemporaryDirectory(prefix="packvec-") as folder,
    ):
        yield Path(folder)


@contextmanager
def local_disk(folder: str) -> Iterator[None]:
    """Raise StorageError instead of OSError if a local folder is full or not writable."""
    try:
        yield
    except OSError as error:
        fault = fault_of(error)
        if fault not in ("full", "access"):
            raise
        what, remedy = FAULTS[fault]
        raise StorageError(
            f"{folder}: expected a folder for temporary files, found {what} ({error}).",
            f"{remedy} To use another folder, set TMPDIR.",
        ) from error


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put_local(target: Path, source: bytes | Path, *, exclusive: bool) -> bool:
    """Write a whole file durably; with `exclusive`, return False if other content exists."""
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
    # A rename would overwrite; O_EXCL would show a partial file.
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
    """Remove a file durably, and folders below `root` that become empty; it may be missing."""
    target = root / path
    target.unlink(missing_ok=True)
    with suppress(FileNotFoundError):  # another thread has removed the folder
        _fsync_folder(target.parent)
    for folder in target.relative_to(root).parents[:-1]:
        try:
            (root / folder).rmdir()
        except OSError:
            break  # not empty


def local_names(folder: str, kind: str) -> list[str]:
    """Return the names of all entries of a folder of one kind ("file" or "directory")."""
    # Not fs.ls: it does not follow links, and older versions fail if a file vanishes meanwhile.
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


# Keys for the time of the last change in the drivers of S3, GCS and Azure.
_TIMES = ("LastModified", "mtime", "last_modified")


@dataclass(frozen=True)
class StoredFile:
    """A file in a listing."""

    path: str
    size: int
    """Size in bytes."""
    modified: datetime
    """Time of the last change by the store's clock, in UTC; object stores round to a second."""


def files_below(folder: str) -> list[StoredFile]:
    """Return all files below a local folder, including dot files; links are followed."""
    return list(_walk(folder, "", set())) if Path(folder).is_dir() else []


def _walk(folder: str, prefix: str, seen: set[tuple[int, int]]) -> Iterator[StoredFile]:
    status = os.stat(folder)  # noqa: PTH116  scandir yields strings
    if (status.st_dev, status.st_ino) in seen:
        return  # a link to a folder already visited
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
                continue  # removed meanwhile


def remote_files_below(filesystem: fsspec.AbstractFileSystem, folder: str) -> list[StoredFile]:
    """Return all objects below a folder of an object store.

    Raises:
        StorageError: the driver does not report the time of the last change.
    """
    prefix = f"{folder.rstrip('/')}/"
    found = filesystem.find(folder, detail=True)
    return [
        StoredFile(name.removeprefix(prefix), info["size"], _modified(name, info))
        for name, info in found.items()
        # A key that ends in "/" represents a folder.
        if info["type"] == "file" and name.startswith(prefix) and not name.endswith("/")
    ]


def _modified(name: str, info: dict[str, Any]) -> datetime:
    times = [info[key] for key in _TIMES if isinstance(info.get(key), datetime)]
    if not times:
        raise StorageError(f"{name}: expected a time of its last change, found none.")
    time: datetime = times[0]
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def remote_names(filesystem: fsspec.AbstractFileSystem, folder: str, kind: str) -> list[str]:
    """Return the names of all entries of one kind in a folder of an object store."""
    prefix = f"{folder}/"
    found = [e["name"] for e in filesystem.ls(folder, detail=True) if e["type"] == kind]
    # ls of a file lists that file; a key that ends in "/" represents the folder itself.
    names = (n.removeprefix(prefix).rstrip("/") for n in found if n.startswith(prefix))
    return [name for name in names if name]
