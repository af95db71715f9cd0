"""The space fingerprint changes with whatever changes a vector's meaning, and with nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from actors.config import OUTPUTS, ModelConfig
from actors.encoder import load_encoder
from actors.fingerprint import file_sha256, fingerprint, space_parts
from actors.models.files import resolve_model

MODELS = Path(__file__).parent / "data" / "oracle" / "models"
M3 = MODELS / "bge-m3"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(M3, tmp_path / "another-name"))


def space_fingerprint(folder: Path = M3, **options: Any) -> str:
    config = ModelConfig(name=str(folder), **options)
    return fingerprint(space_parts(config, resolve_model(config)))


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- what does not change it -------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "float16"},
        {"device": "cuda"},
        {"max_batch_tokens": 7},
        {"outputs": OUTPUTS},
        {"vector_dtype": "float32"},
        {"revision": "0" * 40},
        {"pooling": "cls"},  # what "auto" finds
        {"max_length": 512},  # the model's own limit
        {"query_max_length": 512},
        {"heads": str(M3)},
    ],
    ids=str,
)
def test_fingerprint_of_the_same_space_is_the_same(options: dict[str, Any]) -> None:
    assert space_fingerprint(**options) == space_fingerprint()


def test_fingerprint_of_a_copied_folder_is_the_same(copy: Path) -> None:
    assert space_fingerprint(copy) == space_fingerprint()


def test_fingerprint_of_notes_beside_the_model_is_the_same(copy: Path) -> None:
    (copy / "README.md").write_text("a model card")
    edit_config(copy, transformers_version="9.9.9", _name_or_path="elsewhere")
    assert space_fingerprint(copy) == space_fingerprint()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fingerprint_of_a_loaded_encoder_is_that_of_its_files(dtype: Any) -> None:
    config = ModelConfig(name=str(M3), outputs=OUTPUTS, device="cpu", dtype=dtype)
    assert load_encoder(config).info.space_fingerprint == space_fingerprint()


# --- what changes it ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "mean"},
        {"query_instruction": "find: "},
        {"passage_instruction": "find: "},
        {"normalize": False},
        {"truncate_dim": 8},
        {"max_length": 511},
        {"query_max_length": 511},
        {"heads": str(MODELS / "tiny-m3-colbert16")},
    ],
    ids=lambda options: next(iter(options)),
)
def test_fingerprint_of_other_options_differs(options: dict[str, Any]) -> None:
    assert space_fingerprint(**options) != space_fingerprint()


def test_fingerprint_of_query_and_passage_instruction_are_not_interchangeable() -> None:
    query = space_fingerprint(query_instruction="find: ")
    assert query != space_fingerprint(passage_instruction="find: ")


@pytest.mark.parametrize("filename", ["model.safetensors", "sparse_linear.pt", "colbert_linear.pt"])
def test_fingerprint_of_one_byte_changed_differs(copy: Path, filename: str) -> None:
    flip_last_byte(copy / filename)
    assert space_fingerprint(copy) != space_fingerprint()


def test_fingerprint_of_another_tokenizer_differs(copy: Path) -> None:
    record = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    record["model"]["vocab"][100][1] -= 1.0
    (copy / "tokenizer.json").write_text(json.dumps(record), encoding="utf-8")
    assert space_fingerprint(copy) != space_fingerprint()


def test_fingerprint_of_missing_heads_differs(copy: Path) -> None:
    (copy / "colbert_linear.pt").unlink()
    assert space_fingerprint(copy) != space_fingerprint()


def vectors(folder: Path) -> dict[str, Any]:
    config = ModelConfig(
        name=str(folder),
        outputs=("dense", "sparse"),
        device="cpu",
        dtype="float32",
        vector_dtype="float32",
    )
    row: dict[str, Any] = load_encoder(config).encode_passages(["the capital"]).to_pylist()[0]
    return row


@pytest.mark.parametrize(
    "changes",
    [{"num_attention_heads": 2}, {"hidden_act": "relu"}, {"layer_norm_eps": 0.1}],
    ids=lambda changes: next(iter(changes)),
)
def test_fingerprint_of_weights_used_otherwise_differs(copy: Path, changes: dict[str, Any]) -> None:
    """The same weights file under another config.json gives other vectors."""
    edit_config(copy, **changes)
    assert vectors(copy)["dense"] != pytest.approx(vectors(M3)["dense"], abs=1e-3)
    assert space_fingerprint(copy) != space_fingerprint()


def test_fingerprint_of_other_special_tokens_differs(copy: Path) -> None:
    """They decide which tokens a sparse vector leaves out."""
    before = vectors(M3)["sparse"]["indices"]
    lexical = Tokenizer.from_file(str(M3 / "tokenizer.json")).id_to_token(before[0])
    for filename in ("special_tokens_map.json", "tokenizer_config.json"):
        record = json.loads((copy / filename).read_text())
        (copy / filename).write_text(json.dumps(record | {"cls_token": lexical}))
    assert vectors(copy)["sparse"]["indices"] != before
    assert space_fingerprint(copy) != space_fingerprint()


# --- the hash itself ---------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
PARTS = st.dictionaries(st.text(max_size=4), JSON, max_size=4)


@settings(deadline=None)
@given(parts=PARTS, data=st.data())
def test_fingerprint_does_not_depend_on_key_order(
    parts: dict[str, Any], data: st.DataObject
) -> None:
    keys = data.draw(st.permutations(list(parts)))
    digest = fingerprint({key: parts[key] for key in keys})
    assert digest == fingerprint(parts)
    assert len(digest) == 32
    assert int(digest, 16) >= 0


@settings(deadline=None)
@given(one=PARTS, other=PARTS)
def test_fingerprint_of_different_values_differs(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (fingerprint(one) == fingerprint(other)) == same


def linked_blob(cache: Path, content: bytes, name: Callable[[bytes], str]) -> Path:
    """A file as the hub's cache keeps it: a link to a blob named by a hash."""
    blob = cache / "blobs" / name(content)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(content)
    link = cache / "snapshots" / "1" / "model.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    return link


def test_file_sha256_of_a_hub_blob_equals_that_of_a_plain_file(tmp_path: Path) -> None:
    content = torch.arange(9).numpy().tobytes()
    plain = tmp_path / "model.safetensors"
    plain.write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert file_sha256(plain) == expected
    by_sha256 = linked_blob(tmp_path / "lfs", content, lambda c: hashlib.sha256(c).hexdigest())
    assert file_sha256(by_sha256) == expected
    by_git_sha1 = linked_blob(tmp_path / "git", content, lambda c: hashlib.sha1(c).hexdigest())
    assert file_sha256(by_git_sha1) == expected
