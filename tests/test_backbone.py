"""The backbone: every weight of the checkpoint, on the device and in the type asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.config import ModelConfig
from actors.errors import ModelError
from actors.models.files import ModelFiles, resolve_model
from actors.network import attention
from actors.network.backbone import TORCH_DTYPES, load_backbone, resolve_device, resolve_dtype

BERT = Path(__file__).parent / "data" / "oracle" / "models" / "bge-small-en-v1.5"
CPU = torch.device("cpu")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BERT, tmp_path / "bert"))


def files_of(folder: Path) -> ModelFiles:
    return resolve_model(ModelConfig(name=str(folder)))


@pytest.mark.parametrize("dtype", TORCH_DTYPES.values(), ids=str)
def test_load_backbone_holds_the_files_weights_in_the_type_asked_for(dtype: torch.dtype) -> None:
    backbone = load_backbone(files_of(BERT), dtype, CPU)
    stored = load_file(BERT / "model.safetensors")
    parameters = dict(backbone.named_parameters())
    assert parameters.keys() <= stored.keys()  # the pooler is left out
    for name, parameter in parameters.items():
        assert parameter.dtype == dtype
        assert not parameter.requires_grad
        assert torch.equal(parameter, stored[name].to(dtype))
    assert not backbone.training
    assert backbone.config._attn_implementation == attention.NAME


def test_load_backbone_without_a_weight_is_model_error_naming_it(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    missing = "encoder.layer.1.output.dense.weight"
    del weights[missing]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="expected every weight of BertModel") as error:
        load_backbone(files_of(copy), torch.float32, CPU)
    assert missing in error.value.message
    assert str(copy) in error.value.message


@pytest.mark.parametrize(
    "changes", [{"intermediate_size": 128}, {"vocab_size": 300}], ids=lambda c: next(iter(c))
)
def test_load_backbone_of_other_shapes_than_configured_is_model_error(
    copy: Path, changes: dict[str, Any]
) -> None:
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError) as error:
        load_backbone(files_of(copy), torch.float32, CPU)
    assert str(copy) in error.value.message


@pytest.mark.parametrize("size", [0, 100_000])
def test_load_backbone_of_half_downloaded_weights_is_model_error(copy: Path, size: int) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelError) as error:
        load_backbone(files_of(copy), torch.float32, CPU)
    assert str(copy) in error.value.message


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_resolve_dtype_given_is_kept(dtype: Any, device: str) -> None:
    assert resolve_dtype(dtype, torch.device(device)) == dtype


def test_resolve_dtype_auto_is_half_on_cuda_and_never_float16_on_cpu() -> None:
    assert resolve_dtype("auto", torch.device("cuda")) == "float16"
    assert resolve_dtype("auto", CPU) in {"bfloat16", "float32"}


def test_resolve_device_auto_is_cuda_exactly_where_there_is_one() -> None:
    device = resolve_device("auto")
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_resolve_device_cuda_by_name_without_one_is_model_error(name: str) -> None:
    with pytest.raises(ModelError, match=f"expected a CUDA device for '{name}', found none"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:x"])
def test_resolve_device_of_unknown_name_is_model_error(name: str) -> None:
    with pytest.raises(ModelError, match=r"model\.device"):
        resolve_device(name)
