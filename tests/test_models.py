from __future__ import annotations

from dataclasses import fields

import pytest
from typer.testing import CliRunner

from actors.models.registry import MODELS, RERANKERS, KnownModel
from pipelines.models import app, describe, table


def run(*arguments: str) -> tuple[int, list[str], str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout.splitlines(), result.stderr


def test_models_lists_each_on_a_line_of_at_most_100_columns() -> None:
    code, lines, stderr = run()
    assert code == 0
    assert stderr == ""
    assert lines[0].split() == ["name", "family", "pooling", "dim", "length", "outputs", "code"]
    assert [line.split()[0] for line in lines[1:]] == [record.name for record in MODELS]
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("BAAI/bge-m3", "xlm-roberta cls 1024 8192 all three"),
        ("BAAI/bge-small-zh", "bert cls 512 512 dense"),
        ("Alibaba-NLP/gte-Qwen2-7B-instruct", "qwen2 last_token 3584 32768 dense remote"),
    ],
)
def test_models_line_has_the_facts_in_the_order_of_the_heading(name: str, facts: str) -> None:
    line = next(line for line in table() if line.split()[0] == name)
    assert line.split()[1:] == facts.split()


def test_models_of_one_shows_every_field() -> None:
    code, lines, _ = run("bge-en-icl")
    assert code == 0
    shown = dict(line.split(maxsplit=1) for line in lines)
    assert list(shown) == [field.name for field in fields(KnownModel)]
    assert shown["name"] == '"BAAI/bge-en-icl"'
    assert shown["outputs"] == "dense"
    assert shown["dim"] == "4096"


def test_models_of_one_shows_newlines_and_spaces_at_the_end_of_texts() -> None:
    _, lines, _ = run("bge-en-icl")
    assert any(line.endswith(r'"<instruct>{}\n<query>{}"') for line in lines)
    assert any(line.endswith(r'"\n<response>"') for line in lines)
    _, lines, _ = run("intfloat/e5-base-v2")
    assert any(line.split(maxsplit=1) == ["query_instruction", '"query: "'] for line in lines)
    _, lines, _ = run("BAAI/bge-base-zh")
    assert any(line.endswith('"为这个句子生成表示以用于检索相关文章："') for line in lines)


def test_models_of_one_says_what_was_not_checked() -> None:
    _, lines, _ = run("bge-reasoner-embed-qwen3-8b-0923")
    assert next(line for line in lines if line.startswith("vocab_size")).endswith("  not checked")


def test_models_of_one_with_tasks_shows_both_texts_of_each() -> None:
    _, lines, _ = run("BAAI/llm-embedder")
    at = next(n for n, line in enumerate(lines) if line.split()[0] == "chat")
    assert lines[at].endswith('"Embed this dialogue to find useful historical dialogues: "')
    assert lines[at + 1].strip() == '"Embed this historical dialogue for retrieval: "'


@pytest.mark.parametrize("record", MODELS, ids=lambda record: record.name)
def test_describe_has_no_line_break_inside_a_line(record: KnownModel) -> None:
    assert all("\n" not in line for line in describe(record))


def test_models_of_an_unknown_name_is_one_line_with_the_nearest_and_exit_2() -> None:
    code, lines, stderr = run("BAAI/bge-larg-en")
    assert code == 2
    assert lines == []
    assert stderr.count("\n") == 1
    assert stderr.startswith("error: model 'BAAI/bge-larg-en': expected one with a record")
    assert "nearest are BAAI/bge-large-en," in stderr


def test_models_of_a_name_near_none_says_how_to_list_them() -> None:
    code, _, stderr = run("something else")
    assert code == 2
    assert "python -m pipelines.models lists them" in stderr
    assert stderr.count("\n") == 1


def test_models_knows_a_reranker_by_its_name() -> None:
    code, lines, _ = run("BAAI/bge-reranker-v2-gemma")
    assert (code, lines[1].split()) == (0, ["kind", '"llm"'])
    assert "nearest are BAAI/bge-reranker-v2-gemma" in run("BAAI/bge-rerankerv2-gema")[2]


def test_models_lists_rerankers_where_asked() -> None:
    code, lines, _ = run("--rerankers")
    assert code == 0
    assert "BAAI/bge-reranker-v2-gemma                  llm" in lines
    assert [line.split()[0] for line in lines] == [record.name for record in RERANKERS]
