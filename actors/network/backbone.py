"""Load the transformer below the heads; choose its device and compute type."""

from __future__ import annotations

import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import torch

from actors.config import ComputeDtype
from actors.errors import ModelError
from actors.models.families import Family
from actors.models.files import ModelFiles
from actors.models.registry import KnownModel
from actors.network import attention
from actors.network.forward import Backbone
from actors.network.packed_bert import PackedBert, can_take
from actors.network.packing import PackedBatch

TORCH_DTYPES: dict[ComputeDtype, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


def load_backbone(files: ModelFiles, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """Return the backbone in `dtype` on `device`, with packed attention.

    Raises:
        ModelError: the checkpoint is damaged, lacks a weight or has more layers than config.json.
    """
    from transformers import AutoModel

    family = files.family
    model, unexpected = load_pretrained(
        AutoModel, files.folder, dtype, device, packed=family.packed, **family.load_arguments
    )
    # A pooler or task head may remain unused; a layer that config.json lacks must not.
    unused = sorted(key for key in unexpected if family.layers in key)
    if unused:
        raise ModelError(
            f"{files.folder}: expected the {files.config.get('num_hidden_layers')} layers of "
            f"config.json, found more in the checkpoint ({unused[0]}).",
            "Use the config.json that belongs to these weights.",
        )
    return model  # type: ignore[no-any-return]


def load_pretrained(
    auto: Any,
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    *,
    packed: bool,
    **arguments: Any,
) -> tuple[Any, Collection[str]]:
    """Load a model with a transformers Auto class; return it with the names of unused weights.

    `packed`: use packed attention; `arguments`: for from_pretrained.

    Raises:
        ModelError: the checkpoint is damaged or lacks a weight.
    """
    from transformers.utils import logging

    attention.register()
    # Otherwise every actor would print a progress bar and a report of the unused pooler.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, loading = auto.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            **({"attn_implementation": attention.NAME} if packed else {}),
            **arguments,
        )
    except Exception as error:  # safetensors, pickle and torch raise different types
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{folder}: expected weights that fit config.json, found: {reason:.200}.",
            "Download the model folder again.",
        ) from error
    if loading["missing_keys"]:  # transformers only logs this and leaves them random
        missing = sorted(loading["missing_keys"])
        raise ModelError(
            f"{folder}: expected every weight of {type(model).__name__}, "
            f"found {len(missing)} missing ({missing[0]}, ...).",
            "Download the model again; if this repeats, its architecture is not supported.",
        )
    model.requires_grad_(False)
    return model.eval().to(device), loading["unexpected_keys"]


def fastest(model: torch.nn.Module, family: Family) -> Backbone:
    """Return the fastest implementation of `model`, which cannot be used itself afterwards."""
    if family.packed and can_take(model):
        return PackedBert(model)
    return functools.partial(run, model, family)


def run(model: torch.nn.Module, family: Family, packed: PackedBatch) -> torch.Tensor:
    """Return the last hidden states [T, H] of a packed micro-batch, by transformers' modules."""
    if not family.packed:
        output, mask_NL = padded(model, packed)
        return output.last_hidden_state[mask_NL]  # type: ignore[no-any-return]
    arguments = dict(family.forward_arguments)
    if family.token_types:
        types_T = packed.token_type_ids_T
        types_T = torch.zeros_like(packed.input_ids_T) if types_T is None else types_T
        arguments["token_type_ids"] = types_T[None]
    output = model(
        input_ids=packed.input_ids_T[None],
        position_ids=packed.position_ids_T[None],
        packed=packed,
        **arguments,
    )
    return output.last_hidden_state[0]  # type: ignore[no-any-return]


def padded(model: torch.nn.Module, packed: PackedBatch) -> tuple[Any, torch.Tensor]:
    """Run a model's own code on right-padded rows; return its output and the token mask [N, L]."""
    lengths_N = packed.lengths_N
    column_L = torch.arange(packed.max_seqlen, device=lengths_N.device)
    mask_NL = column_L[None] < lengths_N[:, None]
    # Padding is masked, so any valid token id may be used.
    input_ids_NL = torch.zeros(mask_NL.shape, dtype=torch.int64, device=mask_NL.device)
    input_ids_NL[mask_NL] = packed.input_ids_T
    arguments = {"input_ids": input_ids_NL, "attention_mask": mask_NL.long()}
    types_T = packed.token_type_ids_T
    if types_T is not None:
        types_NL = torch.zeros_like(input_ids_NL)
        types_NL[mask_NL] = types_T
        arguments["token_type_ids"] = types_NL
    return model(**arguments), mask_NL


def resolve_device(name: str, key: str = "model.device") -> torch.device:
    """Return the device; "auto" is CUDA if available, else the CPU. `key`: for messages.

    Raises:
        ModelError: `name` is not a CPU or CUDA device, or CUDA is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        known = device.type in ("cpu", "cuda")
    except RuntimeError:
        known = False
    if not known:
        raise ModelError(f"{key}: expected auto, cpu or cuda[:n], got {name!r}.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"{key}: expected a CUDA device for {name!r}, found none.")
    return device


def resolve_dtype(
    dtype: Literal["auto"] | ComputeDtype, device: torch.device, record: KnownModel | None = None
) -> ComputeDtype:
    """Return the compute type; "auto" depends on the device and the model's record."""
    if dtype != "auto":
        return dtype
    if device.type == "cuda":
        return record.dtype if record else "float16"
    # On a CPU without AMX, bfloat16 is emulated and slower than float32.
    return "bfloat16" if torch.cpu._is_amx_tile_supported() else "float32"
