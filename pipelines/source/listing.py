"""Lists the files that a location (a file, folder or glob) names, and the state of each file.

Follows local links. Skips names that begin with a dot or an underscore (_SUCCESS, _temporary/,
.ipynb_checkpoints/). Does not look into the files.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from pipelines.source.units import SourceFile

_THREADS = 32

# The names that the stores use for an ETag and for the modification time.
_TAGS = ("ETag", "etag", "md5Hash")
_TIMES = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated")

UNKNOWN_SIZE = -1
"""Sentinel size of a file whose HTTP server does not report one."""


@dataclass(frozen=True)
class FoundFiles:
    """The files that a location names."""

    files: list[SourceFile]
    """The files, sorted by path."""
    base: str
    """The folder to which file names in document ids are relative."""
    is_folder: bool
    """Whether the location is a folder, so that no configuration names its files."""


def find_files(fs: Any, root: str) -> FoundFiles:
    """Return the files below a folder, the files that match a glob, or the one file.

    Raises:
        FileNotFoundError: the location does not exist.
    """
    fs.invalidate_cache()
    # fsspec takes every HTTP URL for a file; here a URL with a slash at its end is a folder.
    if not (is_http(fs) and root.endswith("/")) and fs.isfile(root):  # a name may have brackets
        return FoundFiles([describe_file(fs, root)], root.rpartition("/")[0], is_folder=False)
    magic = re.search(r"[*?\[]", root)
    base = root[: magic.start()].rpartition("/")[0] if magic else root.rstrip("/")
    if is_local(fs):
        names = glob.glob(root, recursive=True) if magic else _walk(root)  # noqa: PTH207
        files = [describe_file(fs, name) for name in names if Path(name).is_file()]
    else:
        infos = fs.glob(root, detail=True) if magic else fs.find(root, detail=True)
        names = [name for name, info in infos.items() if info["type"] == "file"]
        if is_http(fs):  # a page of links does not contain sizes
            with ThreadPoolExecutor(_THREADS) as pool:
                files = list(pool.map(lambda name: describe_file(fs, name), names))
        else:
            files = [_from_info(infos[name]) for name in names]
    if not files and not magic and not fs.isdir(root):
        raise FileNotFoundError(root)
    visible = [file for file in files if not _is_hidden(file.path.removeprefix(base))]
    visible.sort(key=lambda file: file.path)
    return FoundFiles(visible, base, is_folder=not magic)


def describe_file(fs: Any, path: str) -> SourceFile:
    """Return the current state of one file; links are followed."""
    if is_local(fs):
        stat = Path(path).stat()
        return SourceFile(path, stat.st_size, str(stat.st_mtime_ns))
    fs.invalidate_cache(path)
    return _from_info(fs.info(path))


def is_local(fs: Any) -> bool:
    """Whether an fsspec file system is the local one."""
    return "file" in _protocols(fs)


def is_http(fs: Any) -> bool:
    """Whether an fsspec file system is HTTP."""
    return "http" in _protocols(fs)


def is_s3(fs: Any) -> bool:
    """Whether an fsspec file system is S3."""
    return "s3" in _protocols(fs)


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def name_in(path: str) -> str:
    """Return the last component of a path or URL, without a URL's query."""
    if path.startswith(("http://", "https://")):
        path = re.split("[?#]", path)[0]
    return path.rsplit("/", 1)[-1]


def common_folder(bases: Sequence[str]) -> str:
    """Return the deepest folder that contains or equals each of the folders."""
    parts = [base.split("/") for base in bases]
    shared = takewhile(lambda names: len(set(names)) == 1, zip(*parts, strict=False))
    return "/".join(names[0] for names in shared)


def _from_info(info: dict[str, Any]) -> SourceFile:
    size = info["size"]
    return SourceFile(info["name"], UNKNOWN_SIZE if size is None else int(size), _etag(info))


def _etag(info: dict[str, Any]) -> str:
    found = next((info[key] for key in (*_TAGS, *_TIMES) if info.get(key)), "")
    return str(found).strip('"')


def _walk(root: str) -> Iterator[str]:
    """Yield the files below a local folder. Links are followed; each folder is entered once."""
    entered: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        yield from (f"{folder.rstrip('/')}/{name}" for name in names)


def _is_hidden(path: str) -> bool:
    """Whether a name in a path relative to the location begins with a dot or an underscore."""
    return any(name.startswith((".", "_")) for name in path.strip("/").split("/"))
