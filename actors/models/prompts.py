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
from actors.models.registry import KnownModel, nearest_names, record_of

EXAMPLE_FORMAT = "<instruct>{instruct}\n<query>{query}\n<response>{response}\n\n"
"""How bge-en-icl reads an example."""
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
    return "".join(EXAMPLE_FORMAT.format_map(example) for example in examples)


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
            near = " or ".join(nearest_names(name))
            raise ModelError(
                f"model.like: expected a model of the registry, got {config.like!r}.",
                f"Did you mean {near}?" if near else "python -m pipelines.models lists them.",
            )
        return None
    facts = {
        "model_type": record.family,
        "hidden_size": record.dim,
        "vocab_size": record.vocab_size,
    }
    wrong = [key for key, expected in facts.items() if expected not in (None, model.get(key))]
    if not wrong:
        return record
    is_hub_id = ":" not in config.name and not Path(config.name).expanduser().is_dir()
    if config.like is None and not is_hub_id:
        return None
    key = wrong[0]
    raise ModelError(
        f"model {config.name!r}: expected {key} {facts[key]}, as the record of {record.name} says, "
        f"found {model.get(key)} in config.json.",
        "It is another model: set model.like to what it was made from, or give its folder.",
    )


@dataclass(frozen=True)
class Prompts:
    """What stands around queries and passages."""

    query: Prompt
    passage: Prompt
    examples: str
    """Before every query."""
    query_suffix: str
    """After every query; where there is one, the query's text is cut before it."""


_PLAIN = KnownModel(name="", family="", pooling="cls", dim=0, max_length=0)
"""What applies to a model without a record: no prompts."""


def prompts_of(config: ModelConfig, record: KnownModel | None) -> Prompts:
    """The configuration's, else the record's, else none.

    Raises:
        ModelError: a format without its two {}, an example that lacks a key, no such task.
    """
    record = record or _PLAIN
    query, passage = record.query_instruction, record.passage_instruction
    if config.task is not None:
        if config.task not in record.tasks:
            raise ModelError(
                f"model.task: expected one of {', '.join(record.tasks) or 'none'} (the tasks of "
                f"{config.name}), got {config.task!r}."
            )
        query, passage = record.tasks[config.task]

    def first(value: str | None, other: str) -> str:
        return other if value is None else value

    suffix = first(config.query_suffix, record.query_suffix)
    return Prompts(
        query=prompt_of(
            first(config.query_instruction, query),
            first(config.query_instruction_format, record.query_format),
            "query_instruction_format",
        ),
        passage=prompt_of(
            first(config.passage_instruction, passage),
            first(config.passage_instruction_format, record.passage_format),
            "passage_instruction_format",
        ),
        examples=examples_prefix(config.examples),
        query_suffix=suffix.replace("\\n", "\n"),
    )
