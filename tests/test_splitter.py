"""Where long texts are cut, apart from budgets and documents."""

from __future__ import annotations

import itertools

import pytest

from actors.models.tiny import ensure_tiny_m3
from actors.tokens.tokenizer import TextTokenizer
from pipelines.passages.splitter import (
    WindowCounter,
    heading_sections,
    inside_word,
    split_text,
    stripped,
)

TOKENIZER = TextTokenizer(ensure_tiny_m3(), 64)


def count_words(_window):
    return lambda piece: len(piece.split())


def pieces_of(text, capacity, overlap=0, counter_of=count_words):
    spans = [stripped(text, *span) for span in split_text(text, capacity, overlap, counter_of)]
    return [text[start:end] for start, end in spans]


# Headings


def sections_of(text, markup="auto"):
    starts = [start for start, _ in heading_sections(text, markup)]
    return [text[a:b] for a, b in itertools.pairwise([*starts, len(text)])]


def test_heading_sections_begin_at_headings_outside_code():
    cases = {
        "no heading\n#hashtag\n    # code": 1,
        "intro\n# One\ntext\n## Two\ntext": 3,
        "# One\ntext\n   ###### Two\ntext": 2,
        "text\r\n# One\r\ntext\r\n": 2,
        "text\n####### seven\ntext": 1,
        "a\n```sh\n# comment\n```\n# One\ntext": 2,
        "a\n~~~\n# comment\n```\n# comment\n~~~\n# One\ntext": 2,
        "a\n````\n# comment\n```\n# comment\n````\n# One\ntext": 2,
        "a\n```\n# never closed": 1,
        "a\n```not a fence``` \n# One\ntext": 2,
    }
    for text, expected in cases.items():
        sections = sections_of(text)
        assert "".join(sections) == text
        assert len(sections) == expected, text
        assert all(section.lstrip().startswith("#") for section in sections[1:])


def test_heading_sections_without_text_belong_to_the_next_and_have_the_highest_level():
    text = "# Title\n\n## One\ntext\n### Two\n\n# Three\ntext\n### Four\nd\n\n###### Five\nf"
    assert sections_of(text)[:2] == ["# Title\n\n## One\ntext\n", "### Two\n\n# Three\ntext\n"]
    assert [level for _, level in heading_sections(text, "auto")] == [1, 1, 3, 6]


def test_heading_sections_underlined_headings_only_in_markdown():
    text = "intro\n\nOne\n===\ntext\n\nTwo\n---\ntext\n\n---\n\na | b\n- | -\n"
    assert sections_of(text) == [text]
    assert [section[:3] for section in sections_of(text, "markdown")] == ["int", "One", "Two"]
    assert [level for _, level in heading_sections(text, "markdown")][1:] == [1, 2]


# Below headings


def test_split_text_prefers_paragraphs_then_sentences_then_words():
    text = "One two three. Four five six seven eight.\n\nNine ten eleven."
    assert pieces_of(text, 9) == ["One two three. Four five six seven eight.", "Nine ten eleven."]
    assert pieces_of(text, 7) == [
        "One two three.",
        "Four five six seven eight.",
        "Nine ten eleven.",
    ]
    assert pieces_of(text, 3)[:3] == ["One two three.", "Four five six", "seven eight."]


@pytest.mark.parametrize("repeat", [1, 60])
def test_split_text_beyond_a_window_is_as_in_one(repeat, monkeypatch):
    """What is at a window's end is left to the next, so that windows leave no trace."""
    text = "\n\n".join(
        f"Paragraph {i} has a sentence. " * (1 + i % 5) + "Another, longer, it seems; and so on."
        for i in range(60 * repeat)
    )
    found = pieces_of(text, 40)
    assert len(text) > 8192 or repeat == 1
    monkeypatch.setattr("pipelines.passages.splitter._WINDOW_CHARACTERS", 10 * len(text))
    assert found == pieces_of(text, 40)


def test_split_text_window_without_a_cut_grows():
    text = "a" + " " * 20_000 + "b" + " " * 20_000 + "c d"
    assert pieces_of(text, 2, counter_of=count_words) == ["a" + " " * 20_000 + "b", "c d"]


def test_inside_word_is_between_letters_of_scripts_with_spaces():
    inside = (
        "ab|cd un|*believ*able un*|believ don|'t नम|स्ते e|\u0301 한|국 a|_b bold|** **|bold word|. "
    )
    inside += "(|see 3|.14 x|² R&amp|;D שלו|ם می\u200c|خواهم"
    outside = "end!|Next 深|度 สวัส|ดี ab| |ab a,|b 👩|👩 。|次 ab|深 （|深 )|( タ|ー"
    cases = dict.fromkeys([*inside.split(), "a|, b"], True)
    cases |= dict.fromkeys([*outside.split(), "ab| cd", "ab |cd"], False)
    for text, is_inside in cases.items():
        before, _, after = text.partition("|")
        assert inside_word(before + after, len(before)) is is_inside, text


# Counting


def test_window_counter_of_pieces_in_any_order_is_exact():
    words = [f"w{i * 7919 % 1000}" for i in range(300)]
    counter = WindowCounter(TOKENIZER, 0, " ".join(words))
    for start in (0, 250, 10, 100, 90, 0):
        piece = " ".join(words[start : start + 30])
        assert counter(piece) == TOKENIZER.count(piece) - TOKENIZER.overhead
