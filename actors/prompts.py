"""What stands around a text for the encoder: instructions in a model's format, and examples.

Follows FlagEmbedding 1.4.2: `format.format(instruction, text)`, where a literal backslash-n in the
format is a line end; no instruction, no format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actors.errors import ModelError

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
