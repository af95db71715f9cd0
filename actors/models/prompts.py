"""What stands around a text for the encoder, and the record of the registry it comes from.

Instructions in a model's format, and examples. Follows FlagEmbedding 1.4.2:
`format.format(instruction, text)`, where a literal backslash-n in the format is a line end; no
instruction, no format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.config import ModelConfig
from actors.errors import ModelError
from actors.models.families import Family
from actors.models.registry import KnownModel, nearest_names, record_of

EXAMPLE_FORMAT = "<instruct>{}\n<query>{}\n<response>{}"
"""Of bge-en-icl: an example's instruction, query and response."""
EXAMPLE_KEYS = ("instruct", "query", "response")


@dataclass(frozen=True)
class Prompt:
    """Put before and after every text."""

    before: str = ""
    after: str = ""

    def around(self, text: str) -> str:
        """The encoder's input."""
        return f"{self.before}{text}{self.after}"


def prompt_of(instruction: str, template: str, key: str) -> Prompt:
    """The prompt of an instruction in a format with two {}: instruction and text.

    Raises:
        ModelError: a format of another shape, naming its key.
    """
    parts = template.replace("\\n", "\n").split("{}")
    if len(parts) != 3:
        raise ModelError(
            f"model.{key}: expected two {{}}, for the instruction and the text, got {template!r}."
        )
    if not instruction:
        return Prompt()
    return Prompt(f"{parts[0]}{instruction}{parts[1]}", parts[2])


def examples_prefix(examples: Sequence[Mapping[str, str]]) -> str:
    """What bge-en-icl reads before a query: examples of its task, "" for none.

    Raises:
        ModelError: an example that lacks a key.
    """
    for i, example in enumerate(examples):
        missing = [key for key in EXAMPLE_KEYS if not isinstance(example.get(key), str)]
        if missing:
            raise ModelError(
                f"model.examples[{i}]: expected {', '.join(EXAMPLE_KEYS)}, each a text; "
                f"{missing[0]} is missing (found {', '.join(example) or 'nothing'})."
            )
    return "".join(
        EXAMPLE_FORMAT.format(*(example[key] for key in EXAMPLE_KEYS)) + "\n\n"
        for example in examples
    )


def find_record(config: ModelConfig, model: Mapping[str, Any]) -> KnownModel | None:
    """The record that applies to a checkpoint, from its config.json.

    A hub id, and the model that `like` names, must be what their record says; a folder that only
    bears the name of a published model has its record where it fits.

    Raises:
        ModelError: no such record, or a checkpoint of another model.
    """
    name = config.like or config.name
    record = record_of(name)
    if record is None:
        if config.like:
            raise ModelError(
                f"model.like: expected a model of the registry, got {config.like!r}.",
                f"Did you mean {' or '.join(near)}?"
                if (near := nearest_names(name))
                else "python -m pipelines.models lists them.",
            )
        return None
    facts = {
        "model_type": (record.family, model.get("model_type")),
        "hidden_size": (record.dim, model.get("hidden_size")),
        "vocab_size": (record.vocab_size, model.get("vocab_size")),
    }
    wrong = {key: pair for key, pair in facts.items() if pair[0] not in (None, pair[1])}
    if not wrong:
        return record
    if config.like is None and _is_elsewhere(config.name):
        return None
    key, (expected, found) = next(iter(wrong.items()))
    raise ModelError(
        f"model {config.name!r}: expected {key} {expected}, as the record of {record.name} says, "
        f"found {found} in config.json.",
        "It is another model: set model.like to what it was made from, or give its folder.",
    )


def _is_elsewhere(name: str) -> bool:
    """Not a hub id: a folder, a package, a URI."""
    return "://" in name or ":" in name or Path(name).expanduser().is_dir()


@dataclass(frozen=True)
class Prompts:
    """What stands around queries and passages."""

    query: Prompt
    passage: Prompt
    examples: str
    """Before every query."""
    query_suffix: str
    """After every query; where there is one, the query's text is cut before it."""


def prompts_of(config: ModelConfig, record: KnownModel | None, family: Family) -> Prompts:
    """The configuration's, else the record's, else none.

    Raises:
        ModelError: a format without its two {}, an example that lacks a key, no such task.
    """
    tasks = record.tasks if record else {}
    if config.task is not None and config.task not in tasks:
        raise ModelError(
            f"model.task: expected one of {', '.join(tasks) or 'none'} (the tasks of "
            f"{config.name}), got {config.task!r}."
        )
    query, passage = (record.query_instruction, record.passage_instruction) if record else ("", "")
    if config.task is not None:
        query, passage = tasks[config.task]
    formats = (family.query_format, "{}{}")
    if record:
        formats = (record.query_format, record.passage_format)

    def first(value: str | None, other: str) -> str:
        return other if value is None else value

    suffix = first(config.query_suffix, record.query_suffix if record else "")
    return Prompts(
        query=prompt_of(
            first(config.query_instruction, query),
            first(config.query_instruction_format, formats[0]),
            "query_instruction_format",
        ),
        passage=prompt_of(
            first(config.passage_instruction, passage),
            first(config.passage_instruction_format, formats[1]),
            "passage_instruction_format",
        ),
        examples=examples_prefix(config.examples),
        query_suffix=suffix.replace("\\n", "\n"),
    )
