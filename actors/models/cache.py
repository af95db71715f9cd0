"""Model folders on object storage, copied once to each machine.

Every actor of a node asks for the folder; one of them downloads it, the others wait at a lock.
A copy is named by what the folder holds there (names, sizes, ETags), so that new weights under an
old name are a new copy, and it appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import fsspec
from filelock import FileLock

from actors.errors import ModelError

# What never helps to encode: other frameworks' copies of the same weights.
_LEFT_OUT = (".onnx", ".h5", ".msgpack", ".ot", ".gguf", ".md", ".png", ".gitattributes")


def cache_home() -> Path:
    """Where this machine keeps what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "packvec"


def local_copy(uri: str, holding: str | None = None) -> Path:
    """The folder at `uri` (s3://, gs://, az://, ...), on this machine's disk.

    `holding`: a file it must have. Credentials come from the environment, as the store's driver
    reads them.

    Raises:
        ModelError: nothing there, or it cannot be read.
    """
    try:
        fs, root = fsspec.core.url_to_fs(uri)
        files = _listing(fs, root)
    except Exception as error:  # each store's driver has its own kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"model {uri!r}: expected a model folder, it cannot be read ({reason:.160}).",
            "Check the location, the credentials in the environment and the network.",
        ) from error
    if not files or (holding and holding not in files):
        raise ModelError(
            f"model {uri!r}: expected {holding or 'files'} in that folder, found "
            f"{', '.join(sorted(files)[:5]) or 'nothing'}.",
            "Point model.name at a folder in transformers format.",
        )
    state = "".join(f"{name}\0{files[name]}\n" for name in sorted(files))
    name = hashlib.sha256(f"{uri}\n{state}".encode()).hexdigest()[:24]
    folder = cache_home() / "models" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            _download(fs, root, sorted(files), folder)
    return folder


def _listing(fs: Any, root: str) -> dict[str, str]:
    """Name below the folder -> size and ETag."""
    fs.invalidate_cache()
    infos = fs.find(root, detail=True)
    return {
        path.removeprefix(root).lstrip("/"): f"{info['size']} {info.get('ETag', info.get('mtime'))}"
        for path, info in infos.items()
        if info["type"] == "file" and not path.endswith(_LEFT_OUT)
    }


def _download(fs: Any, root: str, names: list[str], folder: Path) -> None:
    staging = Path(tempfile.mkdtemp(prefix=".download-", dir=folder.parent))
    try:
        for name in names:
            target = staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(f"{root.rstrip('/')}/{name}", str(target))
        staging.rename(folder)
    except Exception as error:
        shutil.rmtree(staging, ignore_errors=True)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"model {root!r}: the download failed ({reason:.160}).", "Run again."
        ) from error
