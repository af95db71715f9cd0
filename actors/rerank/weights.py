"""The weights of rerankers that transformers has no class for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from actors.errors import ModelError
from actors.rerank.checkpoint import RerankerFiles


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
