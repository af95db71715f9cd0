"""What stands around a text: instructions in a format, examples."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import ModelError
from actors.models.prompts import Prompt, examples_prefix, prompt_of


@given(instruction=st.text(min_size=1), text=st.text())
def test_prompt_is_the_format_of_instruction_and_text(instruction: str, text: str) -> None:
    template = "Instruct: {}\nQuery: {} <end>"
    expected = template.format(instruction, text)
    assert prompt_of(instruction, template, "key").around(text) == expected


def test_prompt_backslash_n_in_a_format_is_a_line_end() -> None:
    prompt = prompt_of("find", "<instruct>{}\\n<query>{}", "key")
    assert prompt == Prompt("<instruct>find\n<query>", "")


def test_prompt_without_instruction_is_the_text_alone() -> None:
    assert prompt_of("", "Instruct: {}\nQuery: {}", "key").around("text") == "text"


@pytest.mark.parametrize("template", ["", "{}", "{}{}{}", "{0} {1}", "query: "])
def test_prompt_format_without_two_places_is_refused(template: str) -> None:
    with pytest.raises(ModelError, match=r"model\.query_instruction_format: expected two \{\}"):
        prompt_of("find", template, "query_instruction_format")


def test_examples_prefix_of_none_is_empty() -> None:
    assert examples_prefix([]) == ""


@pytest.mark.parametrize("missing", ["instruct", "query", "response"])
def test_examples_prefix_of_an_example_that_lacks_a_key_names_it(missing: str) -> None:
    example = {"instruct": "a", "query": "b", "response": "c"}
    broken = {key: value for key, value in example.items() if key != missing}
    with pytest.raises(ModelError, match=rf"model\.examples\[1\]: .*; {missing} is missing"):
        examples_prefix([example, broken])
