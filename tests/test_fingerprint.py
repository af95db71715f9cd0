"""The space fingerprint changes with whatever changes a vector's meaning, and with nothing else."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_inputs import EXACT, M3, MODELS, copy_of, edit_json
from tokenizers import Tokenizer

from actors.config import OUTPUTS, ModelConfig
from actors.encoder import load_encoder
from actors.fingerprint import file_sha256, fingerprint, space_parts
from actors.models.files import resolve_model


@pytest.fixture
def copy(tmp_path) -> Path:
    return copy_of(M3, tmp_path / "another-name")


def space_fingerprint(folder: Path = M3, **options: Any) -> str:
    config = ModelConfig(name=str(folder), **options)
    return fingerprint(space_parts(config, resolve_model(config)))


def test_fingerprint_is_the_same_exactly_where_the_space_is():
    of_this_space: dict[str, Any] = {
        "dtype": "float16",
        "device": "cuda",
        "max_batch_tokens": 7,
        "outputs": OUTPUTS,
        "vector_dtype": "float32",
        "revision": "0" * 40,
        "pooling": "cls",  # what "auto" finds
        "max_length": 512,  # the model's own limit
        "query_max_length": 512,
        "heads": str(M3),
    }
    of_others: dict[str, Any] = {
        "pooling": "mean",
        "query_instruction": "find: ",
        "passage_instruction": "find: ",
        "normalize": False,
        "truncate_dim": 8,
        "max_length": 511,
        "query_max_length": 511,
        "heads": str(MODELS / "tiny-m3-colbert16"),
    }
    for key, value in of_this_space.items():
        assert space_fingerprint(**{key: value}) == space_fingerprint(), key
    different = {key: space_fingerprint(**{key: value}) for key, value in of_others.items()}
    assert len({space_fingerprint(), *different.values()}) == 9, different  # all of them


def test_fingerprint_of_a_copied_folder_with_notes_is_the_same(copy):
    (copy / "README.md").write_text("a model card")
    edit_json(copy / "config.json", transformers_version="9.9.9", _name_or_path="elsewhere")
    assert space_fingerprint(copy) == space_fingerprint()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fingerprint_of_a_loaded_encoder_is_that_of_its_files(dtype):
    config = ModelConfig(name=str(M3), outputs=OUTPUTS, device="cpu", dtype=dtype)
    assert load_encoder(config).info.space_fingerprint == space_fingerprint()


def test_fingerprint_of_another_file_differs(copy):
    for name in ("model.safetensors", "sparse_linear.pt", "colbert_linear.pt", "tokenizer.json"):
        kept = (copy / name).read_bytes()
        if name == "tokenizer.json":
            record = json.loads(kept)
            record["model"]["vocab"][100][1] -= 1.0
            (copy / name).write_text(json.dumps(record), encoding="utf-8")
        else:
            (copy / name).write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        assert space_fingerprint(copy) != space_fingerprint(), name
        (copy / name).write_bytes(kept)
    assert space_fingerprint(copy) == space_fingerprint()
    (copy / "colbert_linear.pt").unlink()
    assert space_fingerprint(copy) != space_fingerprint()


def vectors(folder: Path) -> dict[str, Any]:
    config = ModelConfig(name=str(folder), outputs=("dense", "sparse"), **EXACT)
    return load_encoder(config).encode_passages(["the capital"]).to_pylist()[0]


@pytest.mark.parametrize(
    "changes",
    [{"num_attention_heads": 2}, {"hidden_act": "relu"}, {"layer_norm_eps": 0.1}],
    ids=lambda changes: next(iter(changes)),
)
def test_fingerprint_of_weights_used_otherwise_differs(copy, changes):
    """The same weights file under another config.json gives other vectors."""
    edit_json(copy / "config.json", **changes)
    assert vectors(copy)["dense"] != pytest.approx(vectors(M3)["dense"], abs=1e-3)
    assert space_fingerprint(copy) != space_fingerprint()


def test_fingerprint_of_other_special_tokens_differs(copy):
    """They decide which tokens a sparse vector leaves out."""
    before = vectors(M3)["sparse"]["indices"]
    lexical = Tokenizer.from_file(str(M3 / "tokenizer.json")).id_to_token(before[0])
    for filename in ("special_tokens_map.json", "tokenizer_config.json"):
        edit_json(copy / filename, cls_token=lexical)
    assert vectors(copy)["sparse"]["indices"] != before
    assert space_fingerprint(copy) != space_fingerprint()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
PARTS = st.dictionaries(st.text(max_size=4), JSON, max_size=4)


@settings(deadline=None)
@given(parts=PARTS, other=PARTS, data=st.data())
def test_fingerprint_depends_on_values_and_not_on_the_order_of_keys(parts, other, data):
    keys = data.draw(st.permutations(list(parts)))
    digest = fingerprint({key: parts[key] for key in keys})
    assert digest == fingerprint(parts)
    assert len(digest) == 32
    assert int(digest, 16) >= 0
    same = json.dumps(parts, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (digest == fingerprint(other)) == same


def test_file_sha256_of_a_hub_blob_equals_that_of_a_plain_file(tmp_path):
    """The hub's cache has links to blobs, named by SHA-256 (LFS) or by git's SHA-1."""
    content = bytes(range(99))
    plain = tmp_path / "model.safetensors"
    plain.write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert file_sha256(plain) == expected
    for number, name in enumerate((expected, hashlib.sha1(content).hexdigest())):
        blob = tmp_path / f"cache{number}" / "blobs" / name
        link = tmp_path / f"cache{number}" / "snapshots" / "1" / "model.safetensors"
        for path in (blob, link):
            path.parent.mkdir(parents=True)
        blob.write_bytes(content)
        link.symlink_to(blob)
        assert file_sha256(link) == expected
