"""Reranker checkpoints: which files there are, and what kind they are. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.errors import ModelError
from actors.families import FAMILIES, Family
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
    family: Family | None
    """None for architectures that only rerankers have."""
    remote_code: bool
    """Its architecture is the checkpoint's own Python code."""

    def code_files(self) -> list[Path]:
        """The Python files that compute the scores, where the model brings its own."""
        return sorted(self.folder.glob("*.py")) if self.remote_code else []

    def weight_files(self) -> list[Path]:
        """The files that hold the weights, sorted by name."""
        safetensors = sorted(self.folder.glob("*.safetensors"))
        return safetensors or sorted(self.folder.glob("pytorch_model*.bin"))


def resolve_reranker(config: RerankerConfig) -> RerankerFiles:
    """Find the files of `config.name`, and what kind of reranker they are.

    Raises:
        ModelError: not found, an embedder, code of its own that is not to be run, or fewer
            positions than `max_length`.
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
    family = FAMILIES.get(str(model.get("model_type")))
    if family and config.max_length > family.usable_positions(model):
        raise ModelError(
            f"reranker.max_length: expected at most {family.usable_positions(model)} (the "
            f"positions of {config.name}), got {config.max_length}."
        )
    return RerankerFiles(config.name, folder, model, kind, family, remote)
