"""Which record of the registry a checkpoint goes by, and the prompts it and the options make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.config import ModelConfig
from actors.errors import ModelError
from actors.families import Family
from actors.prompts import Prompt, examples_prefix, prompt_of
from actors.registry import ModelRecord, nearest_names, record_of


def find_record(config: ModelConfig, model: Mapping[str, Any]) -> ModelRecord | None:
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


def prompts_of(config: ModelConfig, record: ModelRecord | None, family: Family) -> Prompts:
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
