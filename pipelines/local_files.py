"""Whole files on a local disk: durable when written, and created exclusively where that matters."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from actors.errors import StorageError


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
