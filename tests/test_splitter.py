"""Where long texts are cut, apart from budgets and documents."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.models.tiny import ensure_tiny_m3
from actors.tokens.tokenizer import TextTokenizer
from pipelines.passages.splitter import (
    WindowCounter,
    halves,
    heading_sections,
    inside_word,
    packed_sections,
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no heading\n#hashtag\n    # code", 1),
        ("intro\n# One\ntext\n## Two\ntext", 3),
        ("# One\ntext\n   ###### Two\ntext", 2),
        ("text\r\n# One\r\ntext\r\n", 2),
        ("text\n####### seven\ntext", 1),
        ("a\n```sh\n# comment\n```\n# One\ntext", 2),
        ("a\n~~~\n# comment\n```\n# comment\n~~~\n# One\ntext", 2),
        ("a\n````\n# comment\n```\n# comment\n````\n# One\ntext", 2),
        ("a\n```\n# never closed", 1),
        ("a\n```not a fence``` \n# One\ntext", 2),
    ],
)
def test_heading_sections_begin_at_headings_outside_code(text, expected):
    sections = sections_of(text)
    assert "".join(sections) == text
    assert len(sections) == expected
    assert all(section.lstrip().startswith("#") for section in sections[1:])


def test_heading_sections_levels_are_those_of_the_headings():
    text = "intro\n# a\nb\n### c\nd\n\n###### e\nf"
    assert [level for _, level in heading_sections(text, "auto")][1:] == [1, 3, 6]


def test_heading_sections_heading_without_text_belongs_to_the_next():
    text = "# Title\n\n## One\ntext\n### Two\n\n# Three\ntext"
    assert sections_of(text) == ["# Title\n\n## One\ntext\n", "### Two\n\n# Three\ntext"]
    assert [level for _, level in heading_sections(text, "auto")] == [1, 1]


def test_heading_sections_underlined_headings_only_in_markdown():
    text = "intro\n\nOne\n===\ntext\n\nTwo\n---\ntext\n\n---\n\na | b\n- | -\n"
    assert sections_of(text) == [text]
    assert [section[:3] for section in sections_of(text, "markdown")] == ["int", "One", "Two"]
    assert [level for _, level in heading_sections(text, "markdown")][1:] == [1, 2]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 30)), min_size=1, max_size=30),
    st.integers(1, 60),
)
def test_packed_sections_are_all_in_order_and_fit_unless_alone(sections, capacity):
    levels, sizes = zip(*sections, strict=True)
    runs = list(packed_sections(levels, sizes, capacity))
    assert [i for first, last in runs for i in range(first, last)] == list(range(len(levels)))
    for first, last in runs:
        assert last - first == 1 or sum(sizes[first:last]) <= capacity


def test_packed_sections_cut_at_the_highest_heading():
    #          1 intro  1.1  1.2   2  2.1  2.2
    levels = [1, 2, 2, 1, 2, 2]
    sizes = [10, 10, 10, 10, 10, 10]
    assert list(packed_sections(levels, sizes, 60)) == [(0, 6)]
    assert list(packed_sections(levels, sizes, 50)) == [(0, 3), (3, 6)]
    assert list(packed_sections(levels, sizes, 20)) == [(0, 2), (2, 3), (3, 5), (5, 6)]
    assert list(packed_sections(levels, [10, 99, 10, 1, 1, 1], 20)) == [
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 6),
    ]


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


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                *("state-of-the-art", "un*believ*able", "R&D", "(see),", "don't", "l’été", "x²"),
                *(
                    "snake_case",
                    "a/b/c",
                    "e-mail@example.com",
                    "**bold**",
                    "3.14",
                    "naïve",
                    "привет",
                ),
                *("مرحبا", "می\u200cخواهم", "שלום", "नमस्ते", "한국어", "e\u0301\u0323a", "Thє"),
            ]
        ),
        min_size=1,
        max_size=60,
    ),
    st.integers(20, 40),  # characters: every word fits
    st.sampled_from([0, 6]),
)
def test_split_text_words_are_never_cut(words, capacity, overlap):
    text = " ".join(words)
    for piece in pieces_of(text, capacity, overlap, lambda window: len):
        assert set(piece.split()) <= set(words)


@pytest.mark.parametrize(
    ("text", "is_inside"),
    [
        *(("ab|cd", True), ("un|*believ*able", True), ("un*|believ", True), ("don|'t", True)),
        *(("नम|स्ते", True), ("e|\u0301", True), ("한|국", True), ("a|_b", True), ("bold|**", True)),
        *(("**|bold", True), ("word|.", True), ("(|see", True), ("3|.14", True), ("x|²", True)),
        *(("a|, b", True), ("R&amp|;D", True), ("שלו|ם", True), ("می\u200c|خواهم", True)),
        *(("ab| cd", False), ("ab |cd", False), ("end!|Next", False), ("深|度", False)),
        *(("สวัส|ดี", False), ("ab|", False), ("|ab", False), ("a,|b", False), ("👩|👩", False)),
        *(("。|次", False), ("ab|深", False), ("（|深", False), (")|(", False), ("タ|ー", False)),
    ],
)
def test_inside_word_is_between_letters_of_scripts_with_spaces(text, is_inside):
    before, _, after = text.partition("|")
    assert inside_word(before + after, len(before)) is is_inside


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("aaa bbbb cc", ["aaa", "bbbb cc"]),
        ("a\u3000bbbbbbbbb", ["a", "bbbbbbbbb"]),
        ("e\u0301e\u0301e\u0301", ["e\u0301", "e\u0301e\u0301"]),
        ("👩‍👩‍👧‍👦🏳️‍🌈", ["👩‍👩‍👧‍👦", "🏳️‍🌈"]),
        ("e\u0301", ["e", "\u0301"]),
        ("½½½½", ["½½", "½½"]),
    ],
)
def test_halves_are_cut_at_a_space_or_between_characters(text, expected):
    assert [text[a:b].strip() for a, b in halves(text)] == expected


@given(st.text(min_size=2, max_size=30).filter(lambda text: text == text.strip() and len(text) > 1))
def test_halves_are_all_of_the_text_and_smaller(text):
    first, second = (text[a:b] for a, b in halves(text))
    assert first + second == text
    assert first
    assert second


# Counting


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(["one", "Two,", "naïve", "½", "<mask>", "界界", "x" * 20]), max_size=40
    ),
    st.data(),
)
def test_window_counter_of_whole_words_is_exact(words, data):
    window = " ".join(words)
    first = data.draw(st.integers(0, len(words)))
    last = data.draw(st.integers(first, len(words)))
    piece = " ".join(words[first:last])
    counter = WindowCounter(TOKENIZER, 0, window)
    assert counter(piece) == TOKENIZER.count(piece) - TOKENIZER.overhead


def test_window_counter_of_pieces_in_any_order_is_exact():
    words = [f"w{i * 7919 % 1000}" for i in range(300)]
    counter = WindowCounter(TOKENIZER, 0, " ".join(words))
    for start in (0, 250, 10, 100, 90, 0):
        piece = " ".join(words[start : start + 30])
        assert counter(piece) == TOKENIZER.count(piece) - TOKENIZER.overhead
