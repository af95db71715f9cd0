"""The transformer under the heads: which device, which compute type, and its weights on it."""

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
    """The backbone in `dtype` on `device`, its attention packed.

    Raises:
        ModelError: the checkpoint is damaged, lacks a weight, or has layers config.json has not.
    """
    from transformers import AutoModel

    family = files.family
    model, unexpected = load_pretrained(
        AutoModel, files.folder, dtype, device, packed=family.packed, **family.load_arguments
    )
    # A pooler or a task head is not needed; more layers than config.json names are another model.
    unused = sorted(key for key in unexpected if family.layers in key)
    if unused:
        raise ModelError(
            f"{files.folder}: expected the {files.config.get('num_hidden_layers')} layers of "
            f"config.json, the checkpoint has more ({unused[0]}).",
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
    """A model by one of transformers' Auto classes, and the weights it has no use for.

    `packed`: its attention is ours; `arguments` are for from_pretrained.

    Raises:
        ModelError: the checkpoint is damaged or lacks a weight.
    """
    from transformers.utils import logging

    attention.register()
    # Its progress bar and its report of the unused pooler would be printed by every actor.
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
    except Exception as error:  # safetensors', pickle's and torch's own kinds
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{folder}: expected weights that fit config.json, found: {reason:.200}.",
            "Download the model folder again.",
        ) from error
    if loading["missing_keys"]:  # transformers would leave them random, with a log line
        missing = sorted(loading["missing_keys"])
        raise ModelError(
            f"{folder}: expected every weight of {type(model).__name__}, "
            f"{len(missing)} are missing ({missing[0]}, ...).",
            "The checkpoint is damaged or of another architecture.",
        )
    model.requires_grad_(False)
    return model.eval().to(device), loading["unexpected_keys"]


def fastest(model: torch.nn.Module, family: Family) -> Backbone:
    """What computes a loaded model's last hidden states; `model` is used up."""
    if family.packed and can_take(model):
        return PackedBert(model)
    return functools.partial(run, model, family)


def run(model: torch.nn.Module, family: Family, packed: PackedBatch) -> torch.Tensor:
    """The last hidden states [T, H] of a packed micro-batch, by transformers' own modules."""
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
    """Run code that is not ours: one row a passage, padded on the right.

    Returns its output, and the mask [N, L] of the tokens.
    """
    lengths_N = packed.lengths_N
    column_L = torch.arange(packed.max_seqlen, device=lengths_N.device)
    mask_NL = column_L[None] < lengths_N[:, None]
    # Padding is masked, so any id the vocabulary has will do.
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
    """The device "auto" means on this machine; `key`: of the configuration, for messages.

    Raises:
        ModelError: CUDA asked for by name where there is none.
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
    """The compute type "auto" means on this device, for a model of this record."""
    if dtype != "auto":
        return dtype
    if device.type == "cuda":
        return record.dtype if record else "float16"
    # Only AMX makes bfloat16 pay on a CPU; emulated, it is slower than float32.
    return "bfloat16" if torch.cpu._is_amx_tile_supported() else "float32"
