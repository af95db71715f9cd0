"""Compute fingerprints: hashes that are equal if vectors or scores may be compared."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.config import ModelConfig, RerankerConfig
from actors.models.files import ModelFiles
from actors.models.reranker_files import RerankerFiles
from actors.tokens.pairs import prompt_of
from actors.tokens.tokenizer_files import non_lexical_ids

# Keys of config.json that do not affect what the model computes.
_NOISE = frozenset(
    {"transformers_version", "_name_or_path", "name_or_path", "architectures", "use_cache"}
    | {"dtype", "torch_dtype", "gradient_checkpointing"}
)


def file_sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file; for a blob of the hub's cache it is the file's name."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and len(blob.name) == 64:
        return blob.name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Return 32 hex digits that identify a JSON value, independent of key order."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def space_parts(config: ModelConfig, files: ModelFiles) -> dict[str, Any]:
    """Return everything that decides whether two vectors may be compared.

    Name and revision are left out, since hashes of the weights are included. Compute dtype, device,
    batch size, stored dtype and `outputs` are left out too: all heads are included, used or not, so
    that a dense index and a server of all three outputs of the same model share one space.
    """
    simulated = config.simulated_tokens_per_second is not None
    return {
        **_file_parts(files),
        "non_lexical_ids": sorted(non_lexical_ids(files.folder)),
        "heads": {output: file_sha256(path) for output, path in sorted(files.heads.items())},
        "pooling": files.pooling,
        "max_length": files.max_length,
        "query_max_length": files.query_max_length,
        "prompts": dataclasses.asdict(files.prompts),
        "normalize": config.normalize,
        "truncate_dim": config.truncate_dim,
        **({"simulated": True} if simulated else {}),
    }


def score_parts(config: RerankerConfig, files: RerankerFiles) -> dict[str, Any]:
    """Return everything that decides whether two scores of rerankers may be compared."""
    return {
        **_file_parts(files),
        "kind": files.kind,
        "prompt": prompt_of(files.kind, config),
        "max_length": config.max_length,
        "query_max_length": config.query_max_length,
        "cutoff_layers": config.cutoff_layers and list(config.cutoff_layers),
        "compress_layers": list(config.compress_layers),
        "compress_ratio": config.compress_ratio,
    }


def _file_parts(files: ModelFiles | RerankerFiles) -> dict[str, Any]:
    return {
        "architecture": {k: v for k, v in files.config.items() if k not in _NOISE},
        "weights": {path.name: file_sha256(path) for path in files.weight_files()},
        "code": {path.name: file_sha256(path) for path in files.code_files()},
        "tokenizer": file_sha256(files.folder / "tokenizer.json"),
    }
