"""Records and checkpoints: which one applies, what it says, and when the two differ."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from actors.config import ModelConfig
from actors.errors import ModelError
from actors.models import registry
from actors.models.files import ModelFiles, resolve_model
from actors.models.registry import MODELS, KnownModel

BERT = ROOT / "tests/data/oracle/models/bge-small-en-v1.5"
ZH = "为这个句子生成表示以用于检索相关文章："
RECORD = KnownModel(
    name="owner/tiny-bert",
    family="bert",
    pooling="mean",
    dim=32,
    max_length=48,
    vocab_size=268,
    query_instruction="find: ",
    passage_instruction="doc",
    passage_format="{} - {}",
    tasks={"qa": ("q: ", "k: "), "chat": ("c: ", "d: ")},
)


@pytest.fixture
def resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Resolve a checkpoint in a folder of some name, with a record for owner/tiny-bert."""
    known = dict(registry._MODEL_BY_NAME) | {"tiny-bert": RECORD}
    monkeypatch.setattr(registry, "_MODEL_BY_NAME", known)

    def make(folder: str = "mine", **options: Any) -> ModelFiles:
        place = tmp_path / folder
        if not place.exists():
            shutil.copytree(BERT, place)
        return resolve_model(ModelConfig(name=str(place), **options))

    return make


def test_resolve_folder_named_as_a_record_that_fits_has_it(resolve: Any) -> None:
    files = resolve("tiny-bert")
    assert files.record == RECORD
    assert (files.pooling, files.max_length) == ("mean", 48)
    assert files.prompts.query.around("x") == "find: x"
    assert files.prompts.passage.around("x") == "doc - x"


def test_resolve_checkpoint_folder_has_its_parents_record(resolve: Any) -> None:
    assert resolve("tiny-bert/checkpoint-100").record == RECORD


def test_resolve_folder_named_as_a_record_that_does_not_fit_has_none(resolve: Any) -> None:
    files = resolve("bge-base-en-v1.5")
    assert files.record is None
    assert files.prompts.query.around("x") == "x"


def test_resolve_folder_of_another_name_has_no_record_unless_it_is_like_one(resolve: Any) -> None:
    assert resolve().record is None
    assert resolve(like="owner/tiny-bert").record == RECORD
    assert resolve(like="tiny-bert").prompts.query.around("x") == "find: x"


def test_resolve_like_a_model_that_it_is_not_names_both(resolve: Any) -> None:
    with pytest.raises(ModelError, match=r"expected hidden_size 1024, .*bge-large-en.*found 32"):
        resolve(like="BAAI/bge-large-en")


def test_resolve_like_a_model_of_another_vocabulary_names_both(
    resolve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(RECORD, vocab_size=999)
    monkeypatch.setattr(registry, "_MODEL_BY_NAME", {"tiny-bert": other})
    with pytest.raises(ModelError, match=r"expected vocab_size 999, .*found 268"):
        resolve(like="tiny-bert")


def test_resolve_like_an_unknown_model_names_the_nearest(resolve: Any) -> None:
    with pytest.raises(ModelError, match=r"model\.like: .*'bge-m4'") as caught:
        resolve(like="bge-m4")
    assert "BAAI/bge-m3" in caught.value.remedy


def test_resolve_own_instruction_goes_over_the_record(resolve: Any) -> None:
    prompts = resolve("tiny-bert", query_instruction="", passage_instruction="p").prompts
    assert prompts.query.around("x") == "x"
    assert prompts.passage.around("x") == "p - x"
    prompts = resolve("tiny-bert", query_instruction_format="<{}|{}>").prompts
    assert prompts.query.around("x") == "<find: |x>"


def test_resolve_task_chooses_its_instructions(resolve: Any) -> None:
    prompts = resolve("tiny-bert", task="chat").prompts
    assert (prompts.query.around("x"), prompts.passage.around("x")) == ("c: x", "d:  - x")


def test_resolve_unknown_task_names_those_there_are(resolve: Any) -> None:
    with pytest.raises(ModelError, match=r"model\.task: expected one of qa, chat .*'sing'"):
        resolve("tiny-bert", task="sing")


def test_resolve_own_pooling_file_goes_over_the_record(resolve: Any, tmp_path: Path) -> None:
    resolve("tiny-bert")
    pooling = tmp_path / "tiny-bert/1_Pooling/config.json"
    pooling.parent.mkdir()
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert resolve("tiny-bert").pooling == "cls"


def test_resolve_record_that_needs_remote_code_is_refused(
    resolve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = dataclasses.replace(RECORD, remote_code=True)
    monkeypatch.setattr(registry, "_MODEL_BY_NAME", {"tiny-bert": remote})
    with pytest.raises(ModelError, match="needs the Python code of its repository"):
        resolve("tiny-bert")


def test_resolve_unknown_hub_id_names_the_nearest_known() -> None:
    with pytest.raises(ModelError) as caught:
        resolve_model(ModelConfig(name="BAAI/bge-base-zh-v1.6"))
    assert "Did you mean BAAI/bge-base-zh-v1.5" in caught.value.remedy


def test_records_of_bge_zh_have_their_instruction() -> None:
    zh = [record for record in MODELS if "-zh" in record.name and "bge" in record.name]
    assert len(zh) == 6
    assert {record.query_instruction for record in zh} == {ZH}
