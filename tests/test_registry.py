"""Records of models: as FlagEmbedding's own map has them, shown, and applied to checkpoints."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from packed_inputs import BERT, copy_of
from typer.testing import CliRunner

from actors.config import ModelConfig
from actors.errors import ModelError
from actors.models import registry
from actors.models.families import FAMILIES
from actors.models.files import ModelFiles, resolve_model
from actors.models.prompts import Prompt, examples_prefix, prompt_of
from actors.models.registry import (
    MODELS,
    RERANKERS,
    KnownModel,
    nearest_names,
    record_of,
    reranker_record,
)
from pipelines.models import app, describe, table

BY_NAME = {record.name: record for record in MODELS}
PLAIN = "{}{}"
TAGS = "<instruct>{}\n<query>{}"
SPACED = "Instruct: {}\nQuery: {}"
TIGHT = "Instruct: {}\nQuery:{}"

# AUTO_EMBEDDER_MAPPING of FlagEmbedding 1.4.2's wheel: class, pooling, format, trust_remote_code.
AUTO_MAP = {
    ("FlagLLMModel", "last_token", SPACED, False): """
        bge-reasoner-embed-qwen3-8b-0923 e5-mistral-7b-instruct SFR-Embedding-2_R
        SFR-Embedding-Mistral Linq-Embed-Mistral""",
    ("FlagLLMModel", "last_token", SPACED, True): """
        gte-Qwen2-7B-instruct gte-Qwen2-1.5B-instruct gte-Qwen1.5-7B-instruct""",
    ("FlagLLMModel", "last_token", TIGHT, False): """
        Qwen3-Embedding-0.6B Qwen3-Embedding-4B Qwen3-Embedding-8B""",
    # The map trusts remote code here, but the repository holds none: architecture Qwen2Model.
    ("FlagLLMModel", "last_token", TAGS, "in vain"): "bge-code-v1",
    ("FlagLLMModel", "last_token", TAGS, False): "bge-multilingual-gemma2",
    ("FlagICLModel", "last_token", TAGS, False): "bge-en-icl",
    ("BGEM3FlagModel", "cls", PLAIN, False): "bge-m3",
    ("FlagModel", "cls", PLAIN, False): """
        bge-large-en-v1.5 bge-base-en-v1.5 bge-small-en-v1.5
        bge-large-zh-v1.5 bge-base-zh-v1.5 bge-small-zh-v1.5
        bge-large-en bge-base-en bge-small-en bge-large-zh bge-base-zh bge-small-zh
        gte-large-zh gte-base-zh gte-small-zh bce-embedding-base_v1""",
    ("FlagModel", "cls", PLAIN, True): "gte-multilingual-base gte-large-en-v1.5 gte-base-en-v1.5",
    ("FlagModel", "mean", PLAIN, False): """
        e5-large-v2 e5-base-v2 e5-small-v2 multilingual-e5-large multilingual-e5-base
        multilingual-e5-small e5-large e5-base e5-small gte-large gte-base gte-small""",
    ("FlagModel", "mean", SPACED, False): "multilingual-e5-large-instruct",
}
AS_MAPPED = {name: facts for facts, names in AUTO_MAP.items() for name in names.split()}
FAMILIES_OF_CLASS = {
    "FlagModel": {"bert", "xlm-roberta", "new"},
    "BGEM3FlagModel": {"xlm-roberta"},
    "FlagLLMModel": {"mistral", "qwen2", "qwen3", "gemma2"},
    "FlagICLModel": {"mistral"},
}


def test_names_are_the_hub_ids_of_the_auto_map_and_llm_embedder():
    names = sorted(name.rpartition("/")[2] for name in BY_NAME)
    assert names == sorted([*AS_MAPPED, "llm-embedder"])
    assert len(AS_MAPPED) == 47
    assert len(names) == len(set(names)) == len(MODELS)
    assert all(name.count("/") == 1 for name in BY_NAME)


def test_records_are_used_as_the_auto_map_uses_them():
    for name, (model_class, pooling, query_format, remote_code) in AS_MAPPED.items():
        record = record_of(name)
        assert record, name
        assert record.family in FAMILIES_OF_CLASS[model_class], name
        assert (record.pooling, record.query_format) == (pooling, query_format), name
        assert (record.passage_format, record.remote_code) == (PLAIN, remote_code is True), name
        assert (len(record.outputs) == 3) == (model_class == "BGEM3FlagModel"), name
        suffix = "\n<response>" if model_class == "FlagICLModel" else ""
        assert record.query_suffix == suffix, name


def test_records_can_configure_a_model():
    for record in MODELS:
        ModelConfig(
            name=record.name,
            pooling=record.pooling,
            outputs=record.outputs,
            max_length=record.max_length,
            dtype=record.dtype,
        )
        assert record.dim % 64 == 0, record.name
        assert record.max_length in (512, 4096, 8192, 32768), record.name
        assert record.vocab_size is None or record.vocab_size > 20_000, record.name
        assert record.family in FAMILIES or record.remote_code, record.name
        assert pickle.loads(pickle.dumps(record)) == record  # on its way to a worker
    assert len(set(MODELS)) == len(MODELS)  # they can be keys


def test_instructions_are_separated_from_the_text():
    """A bare prefix ends in its own separator; one that a format places ends in none."""
    for record in MODELS:
        pairs = [(record.query_instruction, record.passage_instruction), *record.tasks.values()]
        templates = (record.query_format, record.passage_format)
        for instruction, template in (
            each for p in pairs for each in zip(p, templates, strict=True)
        ):
            assert template.count("{}") == 2, record.name
            assert template.format("<i>", "<t>").endswith("<t>"), record.name
            if template == PLAIN:
                assert not instruction or instruction.endswith((": ", "：")), record.name
            else:
                assert instruction == instruction.strip(), record.name
    without = {r.name for r in MODELS if r.query_format != PLAIN and not r.query_instruction}
    assert without == {"BAAI/bge-reasoner-embed-qwen3-8b-0923"}  # the format names the task
    zh = {r.query_instruction for r in MODELS if "-zh" in r.name and "bge" in r.name}
    assert zh == {"为这个句子生成表示以用于检索相关文章："}


WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"


@pytest.mark.parametrize(
    ("name", "query", "passage"),
    [
        ("bge-base-en-v1.5", "Represent this sentence for searching relevant passages: T", "T"),
        ("bge-small-zh", "为这个句子生成表示以用于检索相关文章：T", "T"),
        ("bge-m3", "T", "T"),
        ("multilingual-e5-base", "query: T", "passage: T"),
        ("Qwen3-Embedding-4B", f"Instruct: {WEB_SEARCH}\nQuery:T", "T"),
        ("bge-en-icl", f"<instruct>{WEB_SEARCH}.\n<query>T\n<response>", "T"),
        (
            "llm-embedder",
            "Represent this query for retrieving relevant documents: T",
            "Represent this document for retrieval: T",
        ),
    ],
)
def test_instructed_text_is_what_the_model_card_shows(name, query, passage):
    record = record_of(name)
    assert record
    assert record.query_format.format(record.query_instruction, "T") + record.query_suffix == query
    assert record.passage_format.format(record.passage_instruction, "T") == passage


def test_tasks_are_llm_embedders_six_and_its_default_is_one_of_them():
    assert {record.name for record in MODELS if record.tasks} == {"BAAI/llm-embedder"}
    record = BY_NAME["BAAI/llm-embedder"]
    assert set(record.tasks) == {"qa", "icl", "chat", "lrlm", "tool", "convsearch"}
    assert record.tasks["qa"] == (record.query_instruction, record.passage_instruction)
    assert len({text for pair in record.tasks.values() for text in pair}) == 12


def test_record_of_finds_a_model_however_it_is_named_and_nothing_else():
    names = ["BAAI/bge-m3", "baai/bge-m3", "bge-m3", "/models/bge-m3", "s3://bucket/models/bge-m3"]
    for name in (
        *names,
        "/models/bge-m3/",
        *(f"/runs/bge-m3/checkpoint-500{end}" for end in ("", "/")),
    ):
        record = record_of(name)
        assert record, name
        assert record.name == "BAAI/bge-m3"
    for name in ("", "/", "bge", "BAAI", "builtin:tiny-m3", "checkpoint-500", "BAAI/bge-m3/onnx"):
        assert record_of(name) is None, name


def test_rerankers_are_flag_embeddings_map():
    assert len(RERANKERS) == len({record.name for record in RERANKERS}) == 10
    record = reranker_record("/models/bge-reranker-v2-gemma/checkpoint-7")
    assert record is not None
    assert record.kind == "llm"
    assert reranker_record("bge-m3") is None


def test_nearest_names_are_hub_ids_the_nearest_first():
    assert nearest_names("BAAI/bge-m-3")[0] == "BAAI/bge-m3"
    assert nearest_names("qwen3-embedding-8b")[0] == "Qwen/Qwen3-Embedding-8B"
    assert nearest_names("E5-LARGE")[0] == "intfloat/e5-large"
    assert len(nearest_names("bge-large")) == 3
    assert nearest_names("something else") == []


def test_importing_the_registry_loads_nothing_heavy():
    code = "import sys, actors.models.registry; print(*sys.modules, sep='\\n')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "actors" in loaded
    assert not loaded & {"torch", "transformers", "tokenizers", "pyarrow", "numpy", "ray"}


# --- the command ----------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, list[str], str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout.splitlines(), result.stderr


def test_models_lists_each_on_a_line_of_at_most_100_columns():
    code, lines, stderr = run()
    assert (code, stderr) == (0, "")
    assert lines[0].split() == ["name", "family", "pooling", "dim", "length", "outputs", "code"]
    assert [line.split()[0] for line in lines[1:]] == [record.name for record in MODELS]
    assert max(map(len, lines)) <= 100
    facts = {line.split()[0]: line.split(maxsplit=1)[1].split() for line in table()}
    for name, expected in {
        "BAAI/bge-m3": "xlm-roberta cls 1024 8192 all three",
        "BAAI/bge-small-zh": "bert cls 512 512 dense",
        "Alibaba-NLP/gte-Qwen2-7B-instruct": "qwen2 last_token 3584 32768 dense remote",
    }.items():
        assert facts[name] == expected.split()


def test_models_lists_rerankers_where_asked_and_knows_one_by_its_name():
    code, lines, _ = run("--rerankers")
    assert code == 0
    assert "BAAI/bge-reranker-v2-gemma                  llm" in lines
    assert [line.split()[0] for line in lines] == [record.name for record in RERANKERS]
    code, lines, _ = run("BAAI/bge-reranker-v2-gemma")
    assert (code, lines[1].split()) == (0, ["kind", '"llm"'])
    assert "nearest are BAAI/bge-reranker-v2-gemma" in run("BAAI/bge-rerankerv2-gema")[2]


def test_models_of_one_shows_every_field():
    code, lines, _ = run("bge-en-icl")
    assert code == 0
    shown = dict(line.split(maxsplit=1) for line in lines)
    assert list(shown) == [field.name for field in fields(KnownModel)]
    assert (shown["name"], shown["outputs"], shown["dim"]) == ('"BAAI/bge-en-icl"', "dense", "4096")
    for record in MODELS:
        assert all("\n" not in line for line in describe(record)), record.name


def test_models_of_one_shows_texts_to_their_last_space_and_both_of_each_task():
    for name, starts, ends in (
        ("bge-en-icl", "query_format", r' "<instruct>{}\n<query>{}"'),
        ("bge-en-icl", "query_suffix", r' "\n<response>"'),
        ("intfloat/e5-base-v2", "query_instruction", ' "query: "'),
        ("BAAI/bge-base-zh", "query_instruction", ' "为这个句子生成表示以用于检索相关文章："'),
        ("bge-reasoner-embed-qwen3-8b-0923", "vocab_size", "  not checked"),
    ):
        lines = run(name)[1]
        assert [line for line in lines if line.startswith(starts) and line.endswith(ends)], name
    lines = run("BAAI/llm-embedder")[1]
    at = next(n for n, line in enumerate(lines) if line.split()[0] == "chat")
    assert lines[at].endswith('"Embed this dialogue to find useful historical dialogues: "')
    assert lines[at + 1].strip() == '"Embed this historical dialogue for retrieval: "'


def test_models_of_an_unknown_name_is_one_line_with_the_nearest_and_exit_2():
    for name, said in (
        ("BAAI/bge-larg-en", "nearest are BAAI/bge-large-en,"),
        ("something else", "python -m pipelines.models lists them"),
    ):
        code, lines, stderr = run(name)
        assert (code, lines, stderr.count("\n")) == (2, [], 1)
        assert stderr.startswith(f"error: model {name!r}: expected one with a record")
        assert said in stderr


# --- which record applies -------------------------------------------------------------------------


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
def resolve(tmp_path, monkeypatch) -> Any:
    """Resolve a checkpoint in a folder of some name, with a record for owner/tiny-bert."""

    def make(folder: str = "mine", changes: Any = None, **options: Any) -> ModelFiles:
        record = dataclasses.replace(RECORD, **(changes or {}))
        known = dict(registry._MODEL_BY_NAME) | {"tiny-bert": record}
        monkeypatch.setattr(registry, "_MODEL_BY_NAME", known)
        place = tmp_path / folder
        if not place.exists():
            copy_of(BERT, place)
        return resolve_model(ModelConfig(name=str(place), **options))

    return make


@pytest.mark.parametrize(
    ("folder", "options", "found"),
    [
        ("tiny-bert", {}, True),
        ("tiny-bert/checkpoint-100", {}, True),
        ("mine", {"like": "owner/tiny-bert"}, True),
        ("mine", {"like": "tiny-bert"}, True),
        ("mine", {}, False),
        ("bge-base-en-v1.5", {}, False),  # a record that does not fit
    ],
)
def test_resolve_record_is_the_folders_or_the_one_it_is_like_where_it_fits(
    resolve, folder, options, found
):
    files = resolve(folder, **options)
    assert files.record == (RECORD if found else None)
    assert (files.pooling, files.max_length) == (("mean", 48) if found else ("cls", 512))
    assert files.prompts.query.around("x") == ("find: x" if found else "x")
    assert files.prompts.passage.around("x") == ("doc - x" if found else "x")


@pytest.mark.parametrize(
    ("options", "query", "passage"),
    [
        ({"query_instruction": "", "passage_instruction": "p"}, "x", "p - x"),
        ({"query_instruction_format": "<{}|{}>"}, "<find: |x>", "doc - x"),
        ({"task": "chat"}, "c: x", "d:  - x"),
    ],
)
def test_resolve_own_instruction_format_or_task_goes_over_the_record(
    resolve, options, query, passage
):
    prompts = resolve("tiny-bert", **options).prompts
    assert (prompts.query.around("x"), prompts.passage.around("x")) == (query, passage)


def test_resolve_own_pooling_file_goes_over_the_record(resolve, tmp_path):
    resolve("tiny-bert")
    pooling = tmp_path / "tiny-bert/1_Pooling/config.json"
    pooling.parent.mkdir()
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert resolve("tiny-bert").pooling == "cls"


@pytest.mark.parametrize(
    ("folder", "changes", "options", "said", "remedy"),
    [
        (
            *("mine", {}, {"like": "BAAI/bge-large-en"}),
            *(r"expected hidden_size 1024, .*bge-large-en.*found 32", ""),
        ),
        (
            *("mine", {"vocab_size": 999}, {"like": "tiny-bert"}),
            *(r"expected vocab_size 999, .*found 268", ""),
        ),
        ("mine", {}, {"like": "bge-m4"}, r"model\.like: .*'bge-m4'", "BAAI/bge-m3"),
        ("tiny-bert", {}, {"task": "sing"}, r"model\.task: expected one of qa, chat .*'sing'", ""),
        (
            *("tiny-bert", {"remote_code": True}, {}),
            *("needs the Python code of its repository", "model.trust_remote_code=true"),
        ),
    ],
)
def test_resolve_against_a_record_is_model_error_naming_what_differs(
    resolve, folder, changes, options, said, remedy
):
    with pytest.raises(ModelError, match=said) as caught:
        resolve(folder, changes, **options)
    assert remedy in caught.value.remedy


def test_resolve_unknown_hub_id_names_the_nearest_known():
    with pytest.raises(ModelError) as caught:
        resolve_model(ModelConfig(name="BAAI/bge-base-zh-v1.6"))
    assert "Did you mean BAAI/bge-base-zh-v1.5" in caught.value.remedy


# --- instructions and examples around a text ------------------------------------------------------


@given(instruction=st.text(min_size=1), text=st.text())
def test_prompt_is_the_format_of_instruction_and_text_or_the_text_alone(instruction, text):
    template = "Instruct: {}\nQuery: {} <end>"
    expected = template.format(instruction, text)
    assert prompt_of(instruction, template, "key").around(text) == expected
    assert prompt_of("", template, "key").around(text) == text


def test_prompt_backslash_n_in_a_format_is_a_line_end():
    prompt = prompt_of("find", "<instruct>{}\\n<query>{}", "key")
    assert prompt == Prompt("<instruct>find\n<query>", "")


def test_prompt_format_without_two_places_is_refused():
    for template in ("", "{}", "{}{}{}", "{0} {1}", "query: "):
        with pytest.raises(ModelError, match=r"model\.query_instruction_format: expected two \{\}"):
            prompt_of("find", template, "query_instruction_format")


def test_examples_prefix_of_an_example_that_lacks_a_key_names_it():
    assert examples_prefix([]) == ""
    example = {"instruct": "a", "query": "b", "response": "c"}
    for missing in example:
        broken = {key: value for key, value in example.items() if key != missing}
        with pytest.raises(ModelError, match=rf"model\.examples\[1\]: .*; {missing} is missing"):
            examples_prefix([example, broken])
