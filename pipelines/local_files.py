"""Whole files on a local disk: durable when written, and created exclusively where that matters.

Durable also when removed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from actors.errors import StorageError
from pipelines.storage_faults import FAULTS, fault_of


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
