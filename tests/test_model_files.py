"""Where a model's files are and what they say; every way they can be wrong is a ModelError."""

# ruff: noqa: F811 (fixtures are used by importing them)
from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import ROOT
from packed_inputs import BERT, M3, MODELS, copy_of
from s3_server import KEY, SECRET, Fault, s3_server  # noqa: F401

from actors.config import OUTPUTS, ModelConfig
from actors.encoder import load_encoder
from actors.errors import ModelError
from actors.models.cache import local_copy
from actors.models.files import ModelFiles, resolve_model


def resolve(folder: Path | str, **options: Any) -> ModelFiles:
    return resolve_model(ModelConfig(name=str(folder), **options))


def resolve_error(folder: Path | str, **options: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        resolve(folder, **options)
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 2
    return caught.value


def bert_with(folder: Path, files: dict[str, Any]) -> Path:
    """A copy of BERT: of these files keys replaced, or the whole of it by a text, or none left."""
    copy_of(BERT, folder)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if content is None:
            path.unlink()
        elif isinstance(content, str):
            path.write_text(content)
        else:
            known = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps(known | content if isinstance(content, dict) else content))
    return folder


# --- what is found -----------------------------------------------------------------------------


def test_resolve_folder_finds_weights_heads_and_limits():
    files = resolve(M3, outputs=OUTPUTS, query_max_length=32)
    assert files.folder == M3
    assert files.config["model_type"] == "xlm-roberta"
    assert files.weight_files() == [M3 / "model.safetensors"]
    assert files.heads == {"sparse": M3 / "sparse_linear.pt", "colbert": M3 / "colbert_linear.pt"}
    # tokenizer_config.json says 8192; the position table holds 514 - 2.
    assert (files.max_length, files.query_max_length) == (512, 32)
    files = resolve(M3, max_length=64)
    assert (files.max_length, files.query_max_length) == (64, 64)
    assert set(files.heads) == {"sparse", "colbert"}  # also those not asked for
    assert resolve(BERT).heads == {}


def test_resolve_heads_folder_replaces_the_models_own():
    heads = MODELS / "tiny-m3-colbert16"
    found = resolve(M3, heads=str(heads), outputs=OUTPUTS).heads
    assert set(found.values()) == {heads / "sparse_linear.pt", heads / "colbert_linear.pt"}


SENTENCE_BERT, POOLING = "sentence_bert_config.json", "1_Pooling/config.json"
CLS, MEAN = "pooling_mode_cls_token", "pooling_mode_mean_tokens"
POOL_FOLDER = [
    {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "path": "pool", "type": "sentence_transformers.models.Pooling"},
]


def declared(model_max_length: Any) -> dict[str, Any]:
    return {"tokenizer_config.json": {"model_max_length": model_max_length}}


@pytest.mark.parametrize(
    ("files", "options", "key", "expected"),
    [
        # What is declared, or else the positions.
        (declared(512) | {SENTENCE_BERT: {"max_seq_length": 128}}, {}, "max_length", 128),
        (declared(256) | {SENTENCE_BERT: {"max_seq_length": None}}, {}, "max_length", 256),
        (declared(256), {}, "max_length", 256),
        (declared(1e30), {}, "max_length", 512),
        (declared(None), {}, "max_length", 512),
        (declared(None) | {SENTENCE_BERT: {"max_seq_length": 100_000}}, {}, "max_length", 512),
        ({}, {"max_length": 3}, "max_length", 3),
        ({}, {"max_length": 512}, "max_length", 512),
        # Both styles of keys; the configuration goes over them.
        ({}, {}, "pooling", "cls"),
        ({POOLING: {CLS: True, MEAN: False}}, {}, "pooling", "cls"),
        ({POOLING: {CLS: False, MEAN: True}}, {}, "pooling", "mean"),
        ({POOLING: {MEAN: True, "include_prompt": True}}, {}, "pooling", "mean"),
        ({POOLING: {"pooling_mode": "cls", "include_prompt": True}}, {}, "pooling", "cls"),
        ({POOLING: {"pooling_mode": "mean", "embedding_dimension": 32}}, {}, "pooling", "mean"),
        ({POOLING: {"pooling_mode": "lasttoken"}}, {}, "pooling", "last_token"),
        ({POOLING: {"pooling_mode_lasttoken": True}}, {}, "pooling", "last_token"),
        ({POOLING: {"pooling_mode_max_tokens": True}}, {"pooling": "mean"}, "pooling", "mean"),
        (
            {"modules.json": POOL_FOLDER, "pool/config.json": {MEAN: True}, POOLING: {CLS: True}},
            {},
            "pooling",
            "mean",
        ),
    ],
    ids=str,
)
def test_resolve_length_and_pooling_are_what_is_declared(tmp_path, files, options, key, expected):
    assert getattr(resolve(bert_with(tmp_path / "bert", files), **options), key) == expected


def test_resolve_package_finds_its_folder_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "some_weights"
    shutil.copytree(BERT, package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve("package:some_weights/model").folder == package / "model"
    error = resolve_error("package:some_weights/other")
    assert str(package / "other") in error.message


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache and no network."""
    import huggingface_hub.constants as hub

    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(cache))
    return cache


def test_resolve_hub_id_offline_finds_the_cached_snapshot(hub_cache):
    commit = "5" * 40
    model = hub_cache / "models--owner--name"
    shutil.copytree(BERT, model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    for revision in (None, "main", commit):
        assert resolve("owner/name", revision=revision).folder == model / "snapshots" / commit


# --- what is wrong -----------------------------------------------------------------------------

MODULES = [
    {"type": f"sentence_transformers.models.{kind}", "path": kind}
    for kind in ("Transformer", "Pooling", "Dense", "Normalize")
]
POOLINGS = f"{POOLING}: expected cls, mean or last token pooling, found "
FAMILIES = "among bert, gemma, gemma2, mistral, qwen2, qwen3, roberta, xlm-roberta, found "


@pytest.mark.parametrize(
    ("files", "said", "remedy"),
    [
        ({"config.json": None}, "config.json", "Point model.name at a folder in transformers"),
        ({"tokenizer.json": None}, "tokenizer.json", "Save the tokenizer in its fast format"),
        ({"model.safetensors": None}, "model.safetensors", "Download the whole model folder."),
        ({POOLING: {"pooling_mode_max_tokens": True}}, POOLINGS + "pooling_mode_max", "Set model"),
        ({POOLING: {"pooling_mode": "weightedmean"}}, POOLINGS + "weightedmean", "Set model"),
        ({POOLING: {CLS: False}}, POOLINGS + "none", "Set model.pooling."),
        # sentence-transformers concatenates two: neither alone is this model's vector.
        ({POOLING: {CLS: True, MEAN: True}}, POOLINGS + CLS, "Set model.pooling."),
        ({"modules.json": MODULES}, "found Dense", "use another checkpoint"),
        ({"config.json": {"model_type": "t5"}}, FAMILIES + "'t5'", "Use a model with one of these"),
        ({"config.json": {"model_type": None}}, FAMILIES + "None", "Use a model with one of these"),
        *(
            ({name: content}, f"{name}: expected a JSON object", "")
            for name in ("config.json", "tokenizer_config.json", POOLING)
            for content in ("", "{", "[]", "3")
        ),
        *(
            ({"modules.json": content}, "modules.json: expected a JSON list", "")
            for content in ("", "{", '["no object"]')
        ),
        (
            {"config.json": '{"model_type": "bert", "hidden_size": 32}'},
            "expected a number for max_position_embeddings",
            "Download the model folder again.",
        ),
        (
            {"config.json": {"architectures": ["BertForSequenceClassification"]}},
            "found a reranker (BertForSequenceClassification)",
            "set it as reranker.name.",
        ),
    ],
    ids=str,
)
def test_resolve_wrong_file_is_model_error_naming_it(tmp_path, files, said, remedy):
    error = resolve_error(bert_with(tmp_path / "bert", files))
    assert said in error.message
    assert str(tmp_path / "bert") in error.message
    assert remedy in error.remedy


@pytest.mark.parametrize("output", ["sparse", "colbert"])
def test_resolve_missing_head_is_model_error_naming_it(tmp_path, output):
    folder = copy_of(M3, tmp_path / "m3")
    (folder / f"{output}_linear.pt").unlink()
    error = resolve_error(folder, outputs=OUTPUTS)
    assert f"{output!r} needs {output}_linear.pt" in error.message
    assert str(folder) in error.message
    assert "model.heads" in error.remedy
    assert resolve(folder, outputs=("dense",))  # not asked for


@pytest.mark.parametrize("key", ["max_length", "query_max_length"])
def test_resolve_length_outside_the_positions_is_model_error(key):
    for length in (513, 8192, 2, 1):
        error = resolve_error(M3, **{key: length})
        assert f"model.{key}: expected 3 to 512" in error.message
        assert f"got {length}" in error.message


NEITHER = "model {!r}: expected an existing folder or a hub id"
RERANKER = "expected an embedder, found a reranker"


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize(
    ("name", "said", "remedy"),
    [
        (
            "owner/name",
            "'owner/name': expected a folder or a model of the hub, found neither",
            "Without netw",
        ),
        *((name, NEITHER.format(name), "Check the path.") for name in ("/no/such", "a/b/c", "a b")),
        ("package:no_such/model", "'no_such', which is not installed", "pip install no-such"),
        ("package:no_such.inner/x", "'no_such.inner', which is not installed", "pip install no-s"),
        ("BAAI/bge-reranker-v2-m3", f"{RERANKER}.", "set it as reranker.name"),  # not downloaded
        *(
            (MODELS / name, f"{RERANKER} ({found}).", "set it as reranker.name")
            for name, found in {
                "bge-reranker-v2-m3": "XLMRobertaForSequenceClassification",
                "bge-reranker-v2-gemma": "GemmaForCausalLM",
                "bge-reranker-v2-minicpm-layerwise": "LayerWiseMiniCPMForCausalLM",
                "bge-reranker-v2.5-gemma2-lightweight": "CostWiseGemmaForCausalLM",
            }.items()
        ),
    ],
)
def test_resolve_name_of_no_embedder_is_model_error(name, said, remedy):
    error = resolve_error(name)
    assert said in error.message
    assert remedy in error.remedy


# --- on object storage, copied once, whole, and again when they change ----------------------------


@pytest.fixture
def stored(s3_bucket, s3_server, tmp_path, monkeypatch) -> str:
    """The URI of a model folder; credentials and endpoint are in the environment."""
    bucket, options = s3_bucket
    uri = f"{bucket}/models/bert"
    fsspec.core.url_to_fs(uri, **options)[0].put(f"{BERT}/", uri, recursive=True)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    s3_server.requests.clear()
    return uri


def test_load_encoder_from_a_uri_equals_the_folder(stored):
    texts = ["one text", "another one"]
    here = load_encoder(ModelConfig(name=str(BERT))).encode_passages(texts)
    assert load_encoder(ModelConfig(name=stored)).encode_passages(texts) == here


def test_local_copy_of_threads_and_processes_is_downloaded_once(stored, s3_server):
    code = f"from actors.models.cache import local_copy; local_copy({stored!r})"
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(2)]
    threads = [threading.Thread(target=local_copy, args=(stored,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [process.wait(60) for process in processes] == [0, 0]
    assert local_copy(stored) == local_copy(stored)
    weights = [
        path.endswith("model.safetensors") for method, path in s3_server.requests if method == "GET"
    ]
    assert sum(weights) == 1


def test_local_copy_of_changed_files_is_another(stored, s3_bucket):
    first = local_copy(stored)
    fsspec.core.url_to_fs(stored, **s3_bucket[1])[0].pipe_file(f"{stored}/notes.json", b"{}")
    second = local_copy(stored)
    assert second != first
    assert (second / "notes.json").read_bytes() == b"{}"


def test_local_copy_that_fails_leaves_nothing_and_may_be_tried_again(stored, s3_server, tmp_path):
    s3_server.faults.append(Fault("GET", "model.safetensors", 403, "AccessDenied", times=50))
    with pytest.raises(ModelError, match="the download failed"):
        local_copy(stored)
    kept = [path.name for path in (tmp_path / "cache/packvec/models").iterdir()]
    assert all(name.endswith(".lock") for name in kept)
    s3_server.faults.clear()
    assert (local_copy(stored) / "model.safetensors").exists()


def test_resolve_model_of_an_empty_place_or_unknown_store_is_model_error(stored):
    for name, said in (
        (f"{stored}/nothing", "found nothing"),
        (f"{stored}/../other", "found nothing"),
        ("nonsense://models/bert", "expected a readable model folder"),
    ):
        with pytest.raises(ModelError, match=said):
            resolve_model(ModelConfig(name=name))
