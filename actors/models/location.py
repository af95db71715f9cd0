"""Find a model's folder: on this machine, in a Python package, on object storage or the hub."""

from __future__ import annotations

import importlib.util
import textwrap
from pathlib import Path

from actors.errors import ModelError
from actors.models.cache import local_copy
from actors.models.registry import RERANKERS, nearest_names, record_of, reranker_record

MODEL_KEY, RERANKER_KEY = "model.name", "reranker.name"
"""Keys of the configuration that name a model."""

# Files that are not needed: weights for other frameworks, and images.
_HUB_IGNORE = ["*.onnx", "onnx/*", "openvino/*", "*.h5", "*.msgpack", "rust_model.ot", "imgs/*"]


def locate(name: str, revision: str | None = None, *, key: str = MODEL_KEY) -> Path:
    """Return the local folder of a model, downloading it if needed.

    `key`: the configuration key that contains the name, for messages.

    Raises:
        ModelError: the model is not found or cannot be downloaded.
    """
    if name == "builtin:tiny-m3":
        from actors.models.tiny import ensure_tiny_m3

        return ensure_tiny_m3()
    if name.startswith("package:"):
        return _locate_in_package(name)
    if "://" in name:
        return local_copy(name, holding="config.json")
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise ModelError(
                f"model {name!r}: expected config.json in that folder, found none.",
                f"Point {key} at a folder in transformers format.",
            )
        return folder
    return _locate_on_hub(name, revision, key)


def _locate_in_package(name: str) -> Path:
    module, _, inner = name.removeprefix("package:").partition("/")
    # find_spec does not import the package, which might load large frameworks.
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # parent of a dotted name
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"model {name!r}: expected the Python package {module!r}, which is not installed.",
            f"pip install {module.replace('_', '-')}",
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / inner
    if not (folder / "config.json").exists():
        raise ModelError(f"model {name!r}: expected config.json in {folder}, found none.")
    return folder


def _locate_on_hub(name: str, revision: str | None, key: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, revision=revision, ignore_patterns=_HUB_IGNORE))
    except HFValidationError:
        raise ModelError(
            f"model {name!r}: expected an existing folder or a hub id (owner/name), found neither.",
            _meant(name, key) or "Check the path.",
        ) from None
    except Exception as error:  # the hub client raises many unrelated types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = textwrap.shorten(reason, 160, placeholder="...")
        raise ModelError(
            f"model {name!r}: expected a folder or a model of the hub, found neither ({reason}).",
            f"{_meant(name, key)}Without network: run hf download {name} --local-dir FOLDER on a "
            f"connected machine, copy the folder to every node, and set {key} to its path.",
        ) from error


def _meant(name: str, key: str) -> str:
    rerankers = [record.name for record in RERANKERS] if key == RERANKER_KEY else None
    near = [other for other in nearest_names(name, rerankers) if other != name]
    known = reranker_record(name) if rerankers else record_of(name)
    return f"Did you mean {' or '.join(near)}? " if near and not known else ""
