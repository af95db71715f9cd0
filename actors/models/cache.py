"""Download model folders from object storage once per machine.

All actors of a node request the folder; one of them downloads it while the others wait for a lock.
The name of a copy is a hash of file names, sizes and ETags, so changed weights get a new copy. A
copy appears complete or not at all.
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

# Files that are not needed: weights for other frameworks, and documentation.
_LEFT_OUT = (".onnx", ".h5", ".msgpack", ".ot", ".gguf", ".md", ".png", ".gitattributes")


def cache_home() -> Path:
    """Return packvec's cache folder on this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "packvec"


def local_copy(uri: str, holding: str | None = None) -> Path:
    """Return a local copy of the folder at `uri` (s3://, gs://, az://, ...).

    `holding`: a file that the folder must contain. The store's driver reads credentials from the
    environment.

    Raises:
        ModelError: the folder is empty, lacks the file or cannot be read.
    """
    try:
        fs, root = fsspec.core.url_to_fs(uri)
        files = _listing(fs, root)
    except Exception as error:  # each store's driver has its own types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"model {uri!r}: expected a readable model folder, found: {reason:.160}.",
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
    """Return {path relative to the folder: size and ETag} of its files."""
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
            f"model {root!r}: the download failed ({reason:.160}).", "Run the command again."
        ) from error
