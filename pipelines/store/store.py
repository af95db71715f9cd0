"""Reads and writes files of an index on local disk or object storage; creates files exclusively.

    store = open_store("s3://bucket/index")
    store.create_exclusive("generations/000001/manifest.json", b"...")

A reader sees a whole file or no file. Paths are relative to the store's root and use "/". Every
method may raise StorageError: the bucket does not exist, access is denied, the store is
unreachable, or it cannot be written.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import fsspec

from actors.errors import StorageError
from pipelines.store.faults import FAULTS, SteadyFile, fault_of, patiently
from pipelines.store.files import (
    StoredFile,
    files_below,
    local_names,
    put_local,
    remote_files_below,
    remote_names,
    remove_local,
)

T = TypeVar("T")

# Protocols whose drivers support a conditional PUT -> package that installs the driver.
_PACKAGES = {"s3": "packvec"} | dict.fromkeys(("gs", "gcs"), "packvec[gcs]")
_PACKAGES |= dict.fromkeys(("az", "abfs", "abfss"), "packvec[azure]")
_THREADS = 32
_BLOCK_BYTES = 4 << 20  # the default of s3fs, 50 MiB, is too much for a Parquet footer


def open_store(uri: str, storage_options: Mapping[str, Any] | None = None) -> Store:
    """Return the store at a local path, s3://, gs://, az:// or abfs://, without accessing it.

    A relative local path is made absolute. `storage_options` are passed to the fsspec driver.

    Raises:
        StorageError: the protocol is unsupported (exclusive creation is not known to work), the
            URI has no bucket, or the driver is not installed.
    """
    local = uri.removeprefix("file://") if uri.startswith("file:///") else uri
    scheme, colon, rest = local.partition(":")
    if local and (not colon or "/" in scheme):
        return Store(str(Path(local).expanduser().absolute()))
    # "::" chains file systems in fsspec, such as a cache before a store.
    if scheme not in _PACKAGES or not re.fullmatch(r"//(?!.*::)[^/].*", rest):
        raise StorageError(
            f"expected a local path, s3://, gs://, az:// or abfs:// location, found {uri!r}.",
            "Use one of them; write './' before a local path that contains a colon.",
        )
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise StorageError(
            f"{uri}: expected the driver for {scheme}://, found it not installed ({error}).",
            f"pip install '{_PACKAGES[scheme]}'",
        ) from error
    return Store(uri.rstrip("/"), dict(storage_options or {}))


@dataclass(frozen=True)
class Store:
    """A root folder on storage. Picklable: each process opens its own connections."""

    uri: str
    """The root: an absolute path, or scheme://bucket/folder."""
    options: dict[str, Any] = field(default_factory=dict, repr=False, hash=False)
    """Options of the fsspec driver; never shown, because they may contain secrets."""

    @property
    def is_local(self) -> bool:
        """Whether the files are on the local file system."""
        return self.uri.startswith("/")

    @property
    def filesystem(self) -> fsspec.AbstractFileSystem:
        """The fsspec file system, cached by fsspec per process."""
        return self._open_filesystem()[0]

    def url(self, path: str) -> str:
        """Return the full URI of a path; for a local store, the absolute path."""
        return f"{self.uri.rstrip('/')}/{path}" if path else self.uri

    def path(self, path: str) -> str:
        """Return the path as `filesystem` expects it."""
        root: str = self._open_filesystem()[1]
        return f"{root.rstrip('/')}/{path}" if path else root

    def exists(self, path: str) -> bool:
        """Return whether a file (not a folder) exists at this path."""
        try:
            self.size(path)
        except FileNotFoundError:
            return False
        return True

    def size(self, path: str) -> int:
        """Return the size of a file in bytes. Raises FileNotFoundError, also for a folder."""
        info = self._run(path, lambda: self.filesystem.info(self.path(path)))
        if info["type"] != "file":
            raise FileNotFoundError(self.path(path))
        return int(info["size"])

    def read(self, path: str) -> bytes:
        """Return the content of a file. Raises FileNotFoundError."""
        return self._run(path, lambda: bytes(self.filesystem.cat_file(self.path(path))))

    def read_many(self, paths: Iterable[str]) -> builtins.list[bytes]:
        """Read files concurrently; contents are in the order of `paths`. Raises like `read`."""
        # Not fs.cat: it expands globs and does not keep the order.
        with ThreadPoolExecutor(_THREADS) as pool:
            return [*pool.map(self.read, paths)]

    def list(self, folder: str) -> builtins.list[str]:
        """Return the sorted paths of the files directly in a folder, [] if it does not exist.

        Names that start with a dot (files being written) are omitted.
        """
        return self._list(folder, "file")

    def list_folders(self, folder: str) -> builtins.list[str]:
        """Return the sorted paths of the folders directly in a folder, [] if it does not exist."""
        return self._list(folder, "directory")

    def find(self, folder: str = "") -> builtins.list[StoredFile]:
        """Return all files below a folder at any depth, sorted by path, including dot files.

        Returns [] if the folder does not exist.
        """
        folder = folder.rstrip("/")
        below = files_below if self.is_local else partial(remote_files_below, self.filesystem)
        try:
            found = self._run(folder, lambda: below(self.path(folder)))
        except FileNotFoundError:
            return []
        parent = f"{folder}/" if folder else ""
        return sorted((replace(f, path=parent + f.path) for f in found), key=lambda f: f.path)

    def create_exclusive(self, path: str, data: bytes) -> bool:
        """Create a file if none exists; every commit relies on this operation.

        Among concurrent callers with different data, exactly one gets True. The result is also
        True if the file already holds exactly `data`, because an earlier attempt may have
        succeeded although its answer was lost. A caller that must know that it created the file
        puts something unique (run id, nonce) into the data.

        Returns:
            Whether the file now holds `data`; False if it holds the data of another writer.
        """
        return self._put(path, data, exclusive=True)

    def overwrite(self, path: str, data: bytes) -> None:
        """Write a whole file, replacing an existing one. Never use it for a file of a manifest."""
        self._put(path, data)

    def upload(self, local_file: str | Path, path: str) -> None:
        """Copy a finished local file to `path`, a name that no other writer uses."""
        Path(local_file).stat()  # otherwise a missing file is reported as a missing bucket
        self._put(path, Path(local_file))

    def download(self, path: str, local_file: str | Path) -> None:
        """Copy a file to a local path. Raises like `read`."""
        self._run(path, lambda: self.filesystem.get_file(self.path(path), str(local_file)))

    def delete(self, path: str) -> None:
        """Remove a file and local folders that become empty; a missing file is no error."""

        def remove() -> None:
            if self.is_local:
                remove_local(Path(self.uri), path)
            else:
                self.filesystem.rm_file(self.path(path))

        with suppress(FileNotFoundError):
            self._run(path, remove)

    def delete_many(self, paths: Iterable[str]) -> None:
        """Remove files concurrently and durably."""
        with ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(self.delete, paths):
                pass

    def open_input(self, path: str) -> BinaryIO:
        """Open a file for seekable binary reading, as Parquet requires. Raises like `read`.

        The caller closes it. On object storage its reads are retried, and raise like `read`.
        """
        run, name = partial(self._run, path), self.path(path)
        if self.is_local:
            return cast(BinaryIO, run(lambda: self.filesystem.open(name, "rb")))
        fs = self.filesystem
        opener = partial(fs.open, name, "rb", block_size=_BLOCK_BYTES)
        return cast(BinaryIO, SteadyFile(opener, run))

    def _open_filesystem(self) -> tuple[fsspec.AbstractFileSystem, str]:
        if self.is_local:
            return fsspec.filesystem("file"), self.uri
        # Files that another process has just written must be visible.
        options = {**self.options, "use_listings_cache": False}
        filesystem, root = fsspec.url_to_fs(self.uri, **options)
        return filesystem, root

    def _put(self, path: str, source: bytes | Path, *, exclusive: bool = False) -> bool:
        # Not fs.open: an exception inside its block would publish a partial file.
        def put() -> bool:
            target = self.path(path)
            if self.is_local:
                return put_local(Path(target), source, exclusive=exclusive)
            if isinstance(source, Path):
                self.filesystem.put_file(str(source), target)
                return True
            mode = "create" if exclusive else "overwrite"
            try:
                self.filesystem.pipe_file(target, source, mode=mode)
            except FileExistsError:
                return bool(self.filesystem.cat_file(target) == source)
            return True

        return self._run(path, put, writes=True)

    def _list(self, folder: str, kind: str) -> builtins.list[str]:
        folder = folder.rstrip("/")
        names_of = local_names if self.is_local else partial(remote_names, self.filesystem)
        try:
            names = self._run(folder, lambda: names_of(self.path(folder), kind))
        except FileNotFoundError:
            return []
        parent = f"{folder}/" if folder else ""
        return sorted(parent + name for name in names if not name.startswith("."))

    def _run(self, path: str, action: Callable[[], T], *, writes: bool = False) -> T:
        """Run an action with retries. `writes`: a missing file means a missing bucket.

        Errors of the store become StorageError; FileNotFoundError and other errors do not change.
        """
        try:
            return patiently(action)
        except Exception as error:
            missing = writes and isinstance(error, FileNotFoundError)
            fault = "bucket" if missing else fault_of(error)
            if fault is None:
                raise
            what, remedy = FAULTS[fault]
            message = f"{self.url(path)}: expected a usable location, found {what} ({error})."
            raise StorageError(message, remedy) from error
