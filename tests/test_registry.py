"""The records agree with FlagEmbedding's own map, and with themselves."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from actors.config import ModelConfig
from actors.models.families import FAMILIES
from actors.models.registry import MODELS, KnownModel, nearest_names, record_of

ROOT = Path(__file__).parent.parent
BY_NAME = {record.name: record for record in MODELS}

PLAIN = "{}{}"
TAGS = "<instruct>{}\n<query>{}"
SPACED = "Instruct: {}\nQuery: {}"
TIGHT = "Instruct: {}\nQuery:{}"

# AUTO_EMBEDDER_MAPPING of FlagEmbedding 1.4.2's wheel: class, pooling, format, trust_remote_code.
AUTO_MAP = {
    "bge-reasoner-embed-qwen3-8b-0923": ("FlagLLMModel", "last_token", SPACED, False),
    "bge-code-v1": ("FlagLLMModel", "last_token", TAGS, True),
    "bge-en-icl": ("FlagICLModel", "last_token", TAGS, False),
    "bge-multilingual-gemma2": ("FlagLLMModel", "last_token", TAGS, False),
    "bge-m3": ("BGEM3FlagModel", "cls", PLAIN, False),
    "bge-large-en-v1.5": ("FlagModel", "cls", PLAIN, False),
    "bge-base-en-v1.5": ("FlagModel", "cls", PLAIN, False),
    "bge-small-en-v1.5": ("FlagModel", "cls", PLAIN, False),
    "bge-large-zh-v1.5": ("FlagModel", "cls", PLAIN, False),
    "bge-base-zh-v1.5": ("FlagModel", "cls", PLAIN, False),
    "bge-small-zh-v1.5": ("FlagModel", "cls", PLAIN, False),
    "bge-large-en": ("FlagModel", "cls", PLAIN, False),
    "bge-base-en": ("FlagModel", "cls", PLAIN, False),
    "bge-small-en": ("FlagModel", "cls", PLAIN, False),
    "bge-large-zh": ("FlagModel", "cls", PLAIN, False),
    "bge-base-zh": ("FlagModel", "cls", PLAIN, False),
    "bge-small-zh": ("FlagModel", "cls", PLAIN, False),
    "Qwen3-Embedding-0.6B": ("FlagLLMModel", "last_token", TIGHT, False),
    "Qwen3-Embedding-4B": ("FlagLLMModel", "last_token", TIGHT, False),
    "Qwen3-Embedding-8B": ("FlagLLMModel", "last_token", TIGHT, False),
    "e5-mistral-7b-instruct": ("FlagLLMModel", "last_token", SPACED, False),
    "e5-large-v2": ("FlagModel", "mean", PLAIN, False),
    "e5-base-v2": ("FlagModel", "mean", PLAIN, False),
    "e5-small-v2": ("FlagModel", "mean", PLAIN, False),
    "multilingual-e5-large-instruct": ("FlagModel", "mean", SPACED, False),
    "multilingual-e5-large": ("FlagModel", "mean", PLAIN, False),
    "multilingual-e5-base": ("FlagModel", "mean", PLAIN, False),
    "multilingual-e5-small": ("FlagModel", "mean", PLAIN, False),
    "e5-large": ("FlagModel", "mean", PLAIN, False),
    "e5-base": ("FlagModel", "mean", PLAIN, False),
    "e5-small": ("FlagModel", "mean", PLAIN, False),
    "gte-Qwen2-7B-instruct": ("FlagLLMModel", "last_token", SPACED, True),
    "gte-Qwen2-1.5B-instruct": ("FlagLLMModel", "last_token", SPACED, True),
    "gte-Qwen1.5-7B-instruct": ("FlagLLMModel", "last_token", SPACED, True),
    "gte-multilingual-base": ("FlagModel", "cls", PLAIN, True),
    "gte-large-en-v1.5": ("FlagModel", "cls", PLAIN, True),
    "gte-base-en-v1.5": ("FlagModel", "cls", PLAIN, True),
    "gte-large": ("FlagModel", "mean", PLAIN, False),
    "gte-base": ("FlagModel", "mean", PLAIN, False),
    "gte-small": ("FlagModel", "mean", PLAIN, False),
    "gte-large-zh": ("FlagModel", "cls", PLAIN, False),
    "gte-base-zh": ("FlagModel", "cls", PLAIN, False),
    "gte-small-zh": ("FlagModel", "cls", PLAIN, False),
    "SFR-Embedding-2_R": ("FlagLLMModel", "last_token", SPACED, False),
    "SFR-Embedding-Mistral": ("FlagLLMModel", "last_token", SPACED, False),
    "Linq-Embed-Mistral": ("FlagLLMModel", "last_token", SPACED, False),
    "bce-embedding-base_v1": ("FlagModel", "cls", PLAIN, False),
}

# The map trusts remote code here too, but the repository holds none: architecture Qwen2Model.
TRUSTED_IN_VAIN = {"bge-code-v1"}

FAMILIES_OF_CLASS = {
    "FlagModel": {"bert", "xlm-roberta", "new"},
    "BGEM3FlagModel": {"xlm-roberta"},
    "FlagLLMModel": {"mistral", "qwen2", "qwen3", "gemma2"},
    "FlagICLModel": {"mistral"},
}


def basename(name: str) -> str:
    return name.rpartition("/")[2]


def test_names_are_those_of_the_auto_map_and_llm_embedder() -> None:
    names = sorted(basename(record.name) for record in MODELS)
    assert names == sorted([*AUTO_MAP, "llm-embedder"])
    assert len(AUTO_MAP) == 47


def test_names_are_hub_ids_without_duplicates() -> None:
    assert len(BY_NAME) == len({basename(name) for name in BY_NAME}) == len(MODELS)
    assert all(name.count("/") == 1 for name in BY_NAME)


@pytest.mark.parametrize("name", AUTO_MAP)
def test_record_is_used_as_the_auto_map_uses_it(name: str) -> None:
    record = record_of(name)
    assert record
    model_class, pooling, query_format, remote_code = AUTO_MAP[name]
    assert record.family in FAMILIES_OF_CLASS[model_class]
    assert record.pooling == pooling
    assert record.query_format == query_format
    assert record.passage_format == PLAIN
    assert record.remote_code == (remote_code and name not in TRUSTED_IN_VAIN)
    assert (len(record.outputs) == 3) == (model_class == "BGEM3FlagModel")
    assert record.query_suffix == ("\n<response>" if model_class == "FlagICLModel" else "")


@pytest.mark.parametrize("record", MODELS, ids=lambda record: record.name)
def test_formats_have_two_placeholders(record: KnownModel) -> None:
    for template in (record.query_format, record.passage_format):
        assert template.count("{}") == 2
        assert template.format("<i>", "<t>").endswith("<t>")


@pytest.mark.parametrize("record", MODELS, ids=lambda record: record.name)
def test_instructions_are_separated_from_the_text(record: KnownModel) -> None:
    """A bare prefix ends in its own separator; one that a format places ends in none."""
    pairs = [(record.query_instruction, record.passage_instruction), *record.tasks.values()]
    for pair in pairs:
        for instruction, template in zip(
            pair, (record.query_format, record.passage_format), strict=True
        ):
            if template == PLAIN:
                assert not instruction or instruction.endswith((": ", "："))
            else:
                assert instruction == instruction.strip()


def test_instructions_of_formats_are_there_but_for_the_one_that_names_the_task() -> None:
    without = {r.name for r in MODELS if r.query_format != PLAIN and not r.query_instruction}
    assert without == {"BAAI/bge-reasoner-embed-qwen3-8b-0923"}


@pytest.mark.parametrize(
    ("name", "query", "passage"),
    [
        (
            "bge-base-en-v1.5",
            "Represent this sentence for searching relevant passages: T",
            "T",
        ),
        ("bge-small-zh", "为这个句子生成表示以用于检索相关文章：T", "T"),
        ("bge-m3", "T", "T"),
        ("multilingual-e5-base", "query: T", "passage: T"),
        (
            "Qwen3-Embedding-4B",
            "Instruct: Given a web search query, retrieve relevant passages that answer the query\n"
            "Query:T",
            "T",
        ),
        (
            "bge-en-icl",
            "<instruct>Given a web search query, retrieve relevant passages that answer the "
            "query.\n<query>T\n<response>",
            "T",
        ),
        (
            "llm-embedder",
            "Represent this query for retrieving relevant documents: T",
            "Represent this document for retrieval: T",
        ),
    ],
)
def test_instructed_text_is_what_the_model_card_shows(name: str, query: str, passage: str) -> None:
    record = record_of(name)
    assert record
    assert record.query_format.format(record.query_instruction, "T") + record.query_suffix == query
    assert record.passage_format.format(record.passage_instruction, "T") == passage


def test_tasks_are_llm_embedders_six_and_its_default_is_one_of_them() -> None:
    assert {record.name for record in MODELS if record.tasks} == {"BAAI/llm-embedder"}
    record = BY_NAME["BAAI/llm-embedder"]
    assert set(record.tasks) == {"qa", "icl", "chat", "lrlm", "tool", "convsearch"}
    assert record.tasks["qa"] == (record.query_instruction, record.passage_instruction)
    assert len({text for pair in record.tasks.values() for text in pair}) == 12


@pytest.mark.parametrize("record", MODELS, ids=lambda record: record.name)
def test_record_can_configure_a_model(record: KnownModel) -> None:
    ModelConfig(
        name=record.name,
        pooling=record.pooling,
        outputs=record.outputs,
        max_length=record.max_length,
        dtype=record.dtype,
    )
    assert record.dim % 64 == 0
    assert record.max_length in (512, 4096, 8192, 32768)
    assert record.vocab_size is None or record.vocab_size > 20_000


@pytest.mark.parametrize("record", MODELS, ids=lambda record: record.name)
def test_family_without_remote_code_is_one_of_the_packed_path(record: KnownModel) -> None:
    assert (record.family in FAMILIES) or record.remote_code


@pytest.mark.parametrize(
    "name",
    [
        "BAAI/bge-m3",
        "baai/bge-m3",
        "bge-m3",
        "/models/bge-m3",
        "/models/bge-m3/",
        "s3://bucket/models/bge-m3",
        "/runs/bge-m3/checkpoint-500",
        "/runs/bge-m3/checkpoint-500/",
    ],
)
def test_record_of_finds_a_model_however_it_is_named(name: str) -> None:
    record = record_of(name)
    assert record
    assert record.name == "BAAI/bge-m3"


@pytest.mark.parametrize(
    "name", ["", "/", "bge", "BAAI", "builtin:tiny-m3", "checkpoint-500", "BAAI/bge-m3/onnx"]
)
def test_record_of_something_else_is_none(name: str) -> None:
    assert record_of(name) is None


def test_nearest_names_are_hub_ids_the_nearest_first() -> None:
    assert nearest_names("BAAI/bge-m-3")[0] == "BAAI/bge-m3"
    assert nearest_names("qwen3-embedding-8b")[0] == "Qwen/Qwen3-Embedding-8B"
    assert nearest_names("E5-LARGE")[0] == "intfloat/e5-large"
    assert len(nearest_names("bge-large")) == 3
    assert nearest_names("something else") == []


def test_record_survives_the_way_to_a_worker_and_can_be_a_key() -> None:
    for record in MODELS:
        assert pickle.loads(pickle.dumps(record)) == record
    assert len(set(MODELS)) == len(MODELS)


def test_importing_the_registry_loads_nothing_heavy() -> None:
    code = "import sys, actors.models.registry; print(*sys.modules, sep='\\n')"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in result.stdout.split()}
    assert "actors" in loaded
    assert not loaded & {"torch", "transformers", "tokenizers", "pyarrow", "numpy", "ray"}
