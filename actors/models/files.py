"""Find a model's files and read its properties without loading weights.

Imports no torch, because the driver and the reading tasks use this module for a model's limits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.config import ModelConfig, Output, Pooling
from actors.errors import ModelError
from actors.models.cache import local_copy
from actors.models.families import Family, family_of, remote_family
from actors.models.location import locate
from actors.models.prompts import Prompts, find_record, prompts_of
from actors.models.registry import CLASSIFIER, DECODER_KINDS, KnownModel, reranker_record

SPARSE_HEAD = "sparse_linear.pt"
COLBERT_HEAD = "colbert_linear.pt"
_HEADS: dict[Output, str] = {"sparse": SPARSE_HEAD, "colbert": COLBERT_HEAD}
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model's folder and its config.json."""

    folder: Path
    config: dict[str, Any]
    remote_code: bool
    """Whether the model runs the Python code of its checkpoint."""

    def code_files(self) -> list[Path]:
        """Return the model's own Python files; none if it does not run them."""
        return sorted(self.folder.glob("*.py")) if self.remote_code else []

    def weight_files(self) -> list[Path]:
        """Return the files with weights, except heads, sorted by name."""
        weights = sorted(self.folder.glob("*.safetensors"))
        return weights or sorted(self.folder.glob("pytorch_model*.bin"))


@dataclass(frozen=True, kw_only=True)
class ModelFiles(Checkpoint):
    """The files of an embedding model and its resolved properties."""

    family: Family
    record: KnownModel | None
    prompts: Prompts
    pooling: Pooling
    max_length: int
    query_max_length: int
    heads: dict[Output, Path]
    """Existing head files, also of outputs that are not requested."""


def resolve_model(config: ModelConfig) -> ModelFiles:
    """Find the files of `config.name` and check that the model supports the configuration.

    Raises:
        ModelError: the model is not found, is unreadable, is a reranker, lacks a head, or has
            fewer positions or dimensions than requested.
    """
    if not Path(config.name).expanduser().is_dir():
        _refuse_reranker(config.name, {})  # by name, before the download
    folder = locate(config.name, config.revision)
    model = read_json(folder / "config.json")
    _refuse_reranker(config.name, model)
    if not any((folder / name).exists() for name in _WEIGHTS):
        raise ModelError(
            f"model {config.name!r}: expected weights ({' or '.join(_WEIGHTS)}) in {folder}, "
            "found none.",
            "Download the whole model folder.",
        )
    check_tokenizer(f"model {config.name!r}", folder)
    record = find_record(config, model)
    trust = config.trust_remote_code
    if record and record.remote_code:
        family = remote_family(config.name, trust_remote_code=trust)
    else:
        family = family_of(model, config.name, trust_remote_code=trust, model_type=config.family)
    for key in ("hidden_size", "max_position_embeddings"):
        check_number(folder, model, key)
    positions = family.usable_positions(model)
    declared = _declared_max_length(folder)
    own_limit = min(positions, declared, record.max_length if record else declared)
    dim = config.truncate_dim
    if dim is not None and not 1 <= dim <= int(model["hidden_size"]):
        raise ModelError(
            f"model.truncate_dim: expected 1 to {model['hidden_size']} (the dimensions of "
            f"{config.name}), got {dim}."
        )
    max_length = config.max_length or own_limit
    query_max_length = config.query_max_length or max_length
    for key, length in (("max_length", max_length), ("query_max_length", query_max_length)):
        if not 3 <= length <= positions:
            raise ModelError(
                f"model.{key}: expected 3 to {positions} (the positions of {config.name}), "
                f"got {length}.",
                "Lower it, or chunk the documents.",
            )
    pooling = config.pooling
    if pooling == "auto":
        # The checkpoint comes first: a fine-tuned model may differ from the record.
        pooling = _pooling(folder) or (record.pooling if record else family.pooling)
    return ModelFiles(
        folder=folder,
        config=model,
        remote_code=not family.packed,
        family=family,
        record=record,
        prompts=prompts_of(config, record),
        pooling=pooling,
        max_length=max_length,
        query_max_length=query_max_length,
        heads=_find_heads(config, folder),
    )


def check_tokenizer(model: str, folder: Path) -> None:
    """Raise ModelError if a folder has no tokenizer.json; `model`: for the message."""
    if not (folder / "tokenizer.json").exists():
        raise ModelError(
            f"{model}: expected tokenizer.json in {folder}, found none.",
            "Save the tokenizer in its fast format (tokenizer.save_pretrained).",
        )


def check_number(folder: Path, model: dict[str, Any], key: str) -> None:
    """Raise ModelError if config.json has no integer for a key."""
    if not isinstance(model.get(key), int):
        raise ModelError(
            f"{folder / 'config.json'}: expected a number for {key}, found {model.get(key)!r}.",
            "Download the model folder again.",
        )


def _refuse_reranker(name: str, model: dict[str, Any]) -> None:
    architecture = str((model.get("architectures") or [""])[0])
    is_scorer = architecture.endswith(CLASSIFIER) or architecture in DECODER_KINDS
    if is_scorer or reranker_record(name):
        known = f" ({architecture})" if architecture else ""
        raise ModelError(
            f"model {name!r}: expected an embedder, found a reranker{known}.",
            "A reranker scores pairs: set it as reranker.name.",
        )


def _find_heads(config: ModelConfig, folder: Path) -> dict[Output, Path]:
    heads_folder = folder
    if config.heads:
        is_uri = "://" in config.heads
        heads_folder = local_copy(config.heads) if is_uri else Path(config.heads).expanduser()
    if not heads_folder.is_dir():
        raise ModelError(f"model.heads: expected a folder at {heads_folder}, found none.")
    found: dict[Output, Path] = {}
    for output, filename in _HEADS.items():
        path = heads_folder / filename
        if path.exists():
            found[output] = path
        elif output in config.outputs:
            raise ModelError(
                f"outputs: {output!r} needs {filename}: expected in {heads_folder}, found none.",
                f"Remove {output!r} from outputs, or set model.heads to the folder of that file.",
            )
    return found


def _pooling(folder: Path) -> Pooling | None:
    """Return the pooling that sentence-transformers' files name; None without such a file."""
    path = folder / _pooling_folder(folder) / "config.json"
    if not path.exists():
        return None
    record = read_json(path)
    if "pooling_mode" in record:  # sentence-transformers 6; earlier versions have flags
        modes = {str(record["pooling_mode"])}
    else:
        modes = {
            key for key, on in record.items() if key.startswith("pooling_mode_") and on is True
        }
    found = {_POOLING_MODES.get(mode) for mode in modes}
    if len(found) == 1 and (pooling := found.pop()):
        return pooling
    raise ModelError(
        f"{path}: expected cls, mean or last token pooling, found "
        f"{', '.join(sorted(modes)) or 'none'}.",
        "Set model.pooling.",
    )


_POOLING_MODES: dict[str, Pooling] = {
    "cls": "cls",
    "pooling_mode_cls_token": "cls",
    "mean": "mean",
    "pooling_mode_mean_tokens": "mean",
    "lasttoken": "last_token",
    "pooling_mode_lasttoken": "last_token",
}


def _pooling_folder(folder: Path) -> str:
    path = folder / "modules.json"
    modules = load_json(path, "a JSON list") if path.exists() else []
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelError(f"{path}: expected a JSON list of modules.")
    kinds = {str(module.get("type", "")).rpartition(".")[2]: module for module in modules}
    if others := sorted(kinds.keys() - {"Transformer", "Pooling", "Normalize"}):
        raise ModelError(
            f"{path}: expected Transformer, Pooling and Normalize modules, found {others[0]}.",
            "packvec does not have this layer; use another checkpoint.",
        )
    return str(kinds.get("Pooling", {}).get("path", "1_Pooling"))


def _declared_max_length(folder: Path) -> int:
    for filename, key in (
        ("sentence_bert_config.json", "max_seq_length"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        path = folder / filename
        if path.exists():
            value = read_json(path).get(key)
            if isinstance(value, int | float) and value < 1e9:  # 1e30 means "unknown"
                return int(value)
    return 1 << 30


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a model's folder.

    Raises:
        ModelError: the file is missing, damaged or not an object.
    """
    value = load_json(path, "a JSON object")
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value


def load_json(path: Path, expected: str) -> Any:
    """Read a JSON file; raise ModelError if it is missing or damaged. `expected`: for messages."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: expected {expected}, found: {error}.") from None
