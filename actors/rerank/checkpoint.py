"""Reranker checkpoints: what kind they are, and their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from actors.errors import ModelError
from actors.json_files import read_json
from actors.model_location import locate
from actors.registry import record_of
from actors.rerank.config import RerankerConfig, RerankerKind
from actors.rerank.records import CLASSIFIER, DECODER_KINDS, reranker_record


@dataclass(frozen=True)
class RerankerFiles:
    """A reranker's folder, and what its config.json says."""

    name: str
    folder: Path
    config: dict[str, Any]
    kind: RerankerKind
    remote_code: bool


def resolve_reranker(config: RerankerConfig) -> RerankerFiles:
    """Find the files of `config.name`, and what kind of reranker they are.

    Raises:
        ModelError: not found, an embedder, or code of its own that is not to be run.
    """
    folder = locate(config.name, config.revision)
    model = read_json(folder / "config.json")
    if not (folder / "tokenizer.json").exists():
        raise ModelError(
            f"reranker {config.name!r}: expected tokenizer.json in {folder}, found none.",
            "Save the tokenizer in its fast format (tokenizer.save_pretrained).",
        )
    record = reranker_record(config.name)
    architecture = str((model.get("architectures") or [""])[0])
    kind: RerankerKind | None = DECODER_KINDS.get(architecture)
    if kind is None and architecture.endswith(CLASSIFIER):
        kind = "encoder"
    if kind is None and architecture.endswith("ForCausalLM") and not record_of(config.name):
        kind = "llm"
    if kind is None or (record and record.kind != kind):
        wanted = f"a reranker of kind {record.kind}" if record else "a reranker"
        raise ModelError(
            f"reranker {config.name!r}: expected {wanted}, found "
            f"{architecture or 'no architecture'} in config.json.",
            "An embedder gives vectors: name it as model.name." if not record else "",
        )
    remote = "auto_map" in model and (record is None or record.remote_code) and kind == "encoder"
    if remote and not config.trust_remote_code:
        raise ModelError(
            f"reranker {config.name!r}: needs the Python code of its repository, which is not run "
            "unless the configuration says so.",
            "Read that code, then set trust_remote_code=true (batches are padded: slower).",
        )
    return RerankerFiles(config.name, folder, model, kind, remote)


def read_weights(
    files: RerankerFiles, dtype: torch.dtype, device: torch.device
) -> dict[str, torch.Tensor]:
    """All tensors of the folder's safetensors files, by their names.

    Raises:
        ModelError: there are none, or they cannot be read.
    """
    from safetensors import safe_open

    weights: dict[str, torch.Tensor] = {}
    for path in sorted(files.folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118  no mapping
                    weights[name] = file.get_tensor(name).to(device, dtype)
        except Exception as error:  # the Rust side raises nothing narrower
            raise ModelError(
                f"{path}: expected weights, found: {error!s:.120}.", "Download it again."
            ) from error
    if not weights:
        raise ModelError(f"{files.folder}: expected *.safetensors, found none.")
    return weights


def check_weights(files: RerankerFiles, weights: Mapping[str, Any], needed: set[str]) -> None:
    """That all are there.

    Raises:
        ModelError: they are not.
    """
    if missing := sorted(needed - weights.keys()):
        raise ModelError(
            f"{files.folder}: expected every weight of a {files.kind} reranker, {len(missing)} "
            f"are missing ({missing[0]}, ...).",
            "The checkpoint is damaged or of another architecture.",
        )
