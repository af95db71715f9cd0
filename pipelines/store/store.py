"""Files of an index on local disk or object storage, and the one primitive every commit rests on.

    store = open_store("s3://bucket/index")
    store.create_exclusive("generations/000001/manifest.json", b"...")

Whole files only: a reader sees all of a file or none of it. Knows nothing of what the files mean.
Paths are relative to the store's root and use "/". Every method but `open_store` may raise
StorageError: no such bucket, access denied, unreachable, unwritable.
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

# Protocols whose drivers have a conditional PUT, and what installs the driver.
_PACKAGES = {"s3": "packvec"} | dict.fromkeys(("gs", "gcs"), "packvec[gcs]")
_PACKAGES |= dict.fromkeys(("az", "abfs", "abfss"), "packvec[azure]")
_THREADS = 32
_BLOCK_BYTES = 4 << 20  # s3fs reads 50 MiB ahead by default: too much for a Parquet footer


def open_store(uri: str, storage_options: Mapping[str, Any] | None = None) -> Store:
    """The store at a local path or on s3://, gs://, az:// or abfs://; nothing is read or created.

    A relative local path is made absolute at once. `storage_options` go to the fsspec driver.

    Raises:
        StorageError: another protocol (exclusive creation is not known to work there), no bucket
            in the URI, or a driver that is not installed.
    """
    local = uri.removeprefix("file://") if uri.startswith("file:///") else uri
    scheme, colon, rest = local.partition(":")
    if local and (not colon or "/" in scheme):
        return Store(str(Path(local).expanduser().absolute()))
    # "::" chains file systems in fsspec, such as a cache before a store.
    if scheme not in _PACKAGES or not re.fullmatch(r"//(?!.*::)[^/].*", rest):
        raise StorageError(
            f"expected a local path, s3://, gs://, az:// or abfs:// location, found {uri!r}.",
            "Use one of these; a local path with a colon in it starts with './'.",
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
    """A root folder on storage. Picklable: connections are made where they are used."""

    uri: str
    """Of the root: an absolute path, or scheme://bucket/folder."""
    options: dict[str, Any] = field(default_factory=dict, repr=False, hash=False)
    """For the fsspec driver; may hold secrets, so never shown."""

    @property
    def is_local(self) -> bool:
        """Whether the files are on this machine's file system."""
        return self.uri.startswith("/")

    @property
    def filesystem(self) -> fsspec.AbstractFileSystem:
        """The fsspec file system; fsspec keeps one per process (and per thread for local)."""
        return self._open_filesystem()[0]

    def url(self, path: str) -> str:
        """The full URI of a path; for a local store the absolute path."""
        return f"{self.uri.rstrip('/')}/{path}" if path else self.uri

    def path(self, path: str) -> str:
        """What `filesystem` calls this path."""
        root: str = self._open_filesystem()[1]
        return f"{root.rstrip('/')}/{path}" if path else root

    def exists(self, path: str) -> bool:
        """Whether there is a file (not a folder) at this path now."""
        try:
            self.size(path)
        except FileNotFoundError:
            return False
        return True

    def size(self, path: str) -> int:
        """Bytes of a file; missing, or a folder: as `read`."""
        info = self._run(path, lambda: self.filesystem.info(self.path(path)))
        if info["type"] != "file":
            raise FileNotFoundError(self.path(path))
        return int(info["size"])

    def read(self, path: str) -> bytes:
        """The content of a file; FileNotFoundError when there is none."""
        return self._run(path, lambda: bytes(self.filesystem.cat_file(self.path(path))))

    def read_many(self, paths: Iterable[str]) -> builtins.list[bytes]:
        """The contents of files, read concurrently, in the order asked; missing: as `read`."""
        # Not fs.cat: it expands globs and answers in an order of its own.
        with ThreadPoolExecutor(_THREADS) as pool:
            return [*pool.map(self.read, paths)]

    def list(self, folder: str) -> builtins.list[str]:
        """Paths of the files directly in a folder, sorted; [] when there is no such folder.

        Names that start with a dot (files being written) are left out.
        """
        return self._list(folder, "file")

    def list_folders(self, folder: str) -> builtins.list[str]:
        """Paths of the folders directly in a folder, sorted; [] when there is no such folder."""
        return self._list(folder, "directory")

    def find(self, folder: str = "") -> builtins.list[StoredFile]:
        """Every file below a folder, at any depth, sorted by path; names with a dot too.

        [] when there is no such folder.
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
        """Create a file unless there is one: the primitive every commit rests on.

        Of several concurrent callers with different data exactly one gets True. True also when the
        file already holds exactly `data`, which is what an earlier try whose answer got lost looks
        like: a caller who must know that the file is his puts something unique (run id, nonce)
        into the data.

        Returns:
            Whether the file now holds `data`; False: it holds someone else's.
        """
        return self._put(path, data, exclusive=True)

    def overwrite(self, path: str, data: bytes) -> None:
        """Write a file, whole, over what may be there. Not for anything a manifest refers to."""
        self._put(path, data)

    def upload(self, local_file: str | Path, path: str) -> None:
        """Put a copy of a finished local file, whole, at `path`, a name no one else uses."""
        Path(local_file).stat()  # else its absence would be reported as that of the bucket
        self._put(path, Path(local_file))

    def download(self, path: str, local_file: str | Path) -> None:
        """Put a copy of a file at a local path; missing: as `read`."""
        self._run(path, lambda: self.filesystem.get_file(self.path(path), str(local_file)))

    def delete(self, path: str) -> None:
        """Remove a file, and local folders it leaves empty; one that is not there is no error."""

        def remove() -> None:
            if self.is_local:
                remove_local(Path(self.uri), path)
            else:
                self.filesystem.rm_file(self.path(path))

        with suppress(FileNotFoundError):
            self._run(path, remove)

    def delete_many(self, paths: Iterable[str]) -> None:
        """Remove files concurrently; all are gone, durably, when it returns."""
        with ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(self.delete, paths):
                pass

    def open_input(self, path: str) -> BinaryIO:
        """A file open for seekable binary reading, as Parquet wants it; missing: as `read`.

        The caller closes it. On object storage its reads are tried again, and raise, as `read`.
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
        # What another process has just written must be seen.
        options = {**self.options, "use_listings_cache": False}
        filesystem, root = fsspec.url_to_fs(self.uri, **options)
        return filesystem, root

    def _put(self, path: str, source: bytes | Path, *, exclusive: bool = False) -> bool:
        # Never through fs.open: leaving that block by an exception publishes half a file.
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
        """Do it, and again when the store hiccups. `writes`: nothing but the bucket can be missing.

        Everything is reported as StorageError but FileNotFoundError and errors of no store.
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
