"""Prompts around queries and passages, and the registry record that they come from.

Follows FlagEmbedding 1.4.2: `format.format(instruction, text)`, where a literal backslash-n in the
format is a newline. Without an instruction, the format is not used.
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
"""Format of an example for bge-en-icl."""
EXAMPLE_KEYS = ("instruct", "query", "response")


@dataclass(frozen=True)
class Prompt:
    """Texts put before and after every query or passage."""

    before: str = ""
    after: str = ""

    def around(self, text: str) -> str:
        """Return the text with the prompt around it."""
        return f"{self.before}{text}{self.after}"


def prompt_of(instruction: str, template: str, key: str) -> Prompt:
    """Return the prompt for an instruction; `template` has two {}, for instruction and text.

    Raises:
        ModelError: the template does not have two {}; `key` names it in the message.
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
    """Return the examples that bge-en-icl reads before a query; "" for no examples.

    Raises:
        ModelError: an example lacks a key.
    """
    for i, example in enumerate(examples):
        missing = [key for key in EXAMPLE_KEYS if not isinstance(example.get(key), str)]
        if missing:
            raise ModelError(
                f"model.examples[{i}]: expected a text for each of {', '.join(EXAMPLE_KEYS)}; "
                f"{missing[0]} is missing (found {', '.join(example) or 'nothing'})."
            )
    return "".join(EXAMPLE_FORMAT.format_map(example) for example in examples)


def find_record(config: ModelConfig, model: Mapping[str, Any]) -> KnownModel | None:
    """Return the registry record for a checkpoint; `model`: its config.json.

    For a hub id or with `like`, the checkpoint must match the record. A local folder with the name
    of a published model gets its record only if it matches.

    Raises:
        ModelError: `like` names no record, or the checkpoint does not match.
    """
    name = config.like or config.name
    record = record_of(name)
    if record is None:
        if config.like:
            near = " or ".join(nearest_names(name))
            raise ModelError(
                f"model.like: expected a model of the registry, got {config.like!r}.",
                f"Did you mean {near}?" if near else "List them: python -m pipelines.models",
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
        f"model {config.name!r}: expected {key} {facts[key]}, as in the record of {record.name}, "
        f"found {model.get(key)} in config.json.",
        "Set model.like to the published model it was trained from, or model.name to its folder.",
    )


@dataclass(frozen=True)
class Prompts:
    """The prompts of queries and passages."""

    query: Prompt
    passage: Prompt
    examples: str
    """Text before every query."""
    query_suffix: str
    """Text after every query; truncation shortens the query and keeps this text."""


_PLAIN = KnownModel(name="", family="", pooling="cls", dim=0, max_length=0)
"""Record for a model without one: no prompts."""


def prompts_of(config: ModelConfig, record: KnownModel | None) -> Prompts:
    """Return the prompts of the configuration, by default those of the record.

    Raises:
        ModelError: a format lacks its two {}, an example lacks a key, or the task is unknown.
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
