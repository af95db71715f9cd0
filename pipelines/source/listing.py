"""Which files a location names, and the state they are in: a file, a folder or a glob.

Local links are followed; names that begin with a dot or an underscore (_SUCCESS, _temporary/,
.ipynb_checkpoints/) are left out. Knows nothing of what is in the files.
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

# What the stores call an ETag, and the time of the last change.
_TAGS = ("ETag", "etag", "md5Hash")
_TIMES = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated")

UNKNOWN_SIZE = -1
"""Of a file whose HTTP server does not say."""


@dataclass(frozen=True)
class FoundFiles:
    """What a location names."""

    files: list[SourceFile]
    """By path."""
    base: str
    """The folder that names in ids are relative to."""
    is_folder: bool
    """A folder: its files are not named one by one."""


def find_files(fs: Any, root: str) -> FoundFiles:
    """The files below a folder, the files a glob matches, or the one file.

    Raises:
        FileNotFoundError: nothing there.
    """
    fs.invalidate_cache()
    # Every URL is a file to HTTP: there a folder is what ends with a slash.
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
        if is_http(fs):  # a page of links tells no sizes
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
    """The state of one file now; of a link: of what it points to."""
    if is_local(fs):
        stat = Path(path).stat()
        return SourceFile(path, stat.st_size, str(stat.st_mtime_ns))
    fs.invalidate_cache(path)
    return _from_info(fs.info(path))


def is_local(fs: Any) -> bool:
    """Whether an fsspec file system is this machine's."""
    return "file" in _protocols(fs)


def is_http(fs: Any) -> bool:
    """Whether an fsspec file system is a web server's."""
    return "http" in _protocols(fs)


def is_s3(fs: Any) -> bool:
    """Whether an fsspec file system is S3's."""
    return "s3" in _protocols(fs)


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def name_in(path: str) -> str:
    """The last name of a path; of a URL: without its query."""
    if path.startswith(("http://", "https://")):
        path = re.split("[?#]", path)[0]
    return path.rsplit("/", 1)[-1]


def common_folder(bases: Sequence[str]) -> str:
    """The deepest folder that all of them are, or are in."""
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
    """Files below a local folder, links followed, each folder entered once."""
    entered: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        yield from (f"{folder.rstrip('/')}/{name}" for name in names)


def _is_hidden(path: str) -> bool:
    """Below the configured location: _SUCCESS, _temporary/, .ipynb_checkpoints/ and the like."""
    return any(name.startswith((".", "_")) for name in path.strip("/").split("/"))
