"""Chunking: where passages begin and end, and that nothing between them is lost."""

from __future__ import annotations

import functools
import itertools
import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace

from actors.errors import ConfigError
from actors.models.prompts import Prompt
from actors.models.tiny import ensure_tiny_m3
from actors.tokens.tokenizer import TextTokenizer, encoder_input
from pipelines.config.sections import ChunkConfig
from pipelines.passages.chunker import Chunker, Passages

MAX_LENGTH = 64
BARE = Tokenizer.from_file(str(ensure_tiny_m3() / "tokenizer.json"))

_WORDS = """Ray naïve I.B.M. 深度学习是机器学习的一个分支 日本語のテキスト、二つ目。 مرحبا بالعالم
שָׁלוֹם ประเทศไทยมีสภาพอากาศร้อนชื้น नमस्ते 한국어로 می\u200cخواهم \ufdfa\ufdfb a\x00b\x07 ``` un*believ*able
👩‍👩‍👧‍👦🏳️‍🌈 e\u0301\u0323 ½①㍿… pneumonoultramicroscopicsilicovolcanoconiosis <s>"""
_LETTERS = st.characters(categories=["Ll", "Lu", "Nd"], max_codepoint=0x24F)
WORDS = st.text(_LETTERS, min_size=1) | st.sampled_from(
    [*_WORDS.split(), "b\x1cc", "# not a heading", "x" * 150, "界" * 90]
)
SPACES = st.sampled_from(
    [
        *(" ", " ", " ", "\n", "\n\n", ". ", "\r\n", "\t", "\u3000", "\u200b", "  "),
        *("\n# ", "\n\n## ", "\n\n### A\n\n", "。"),
    ]
)
PROSE = st.lists(st.tuples(WORDS, SPACES), max_size=30).map(
    lambda pairs: "".join(word + space for word, space in pairs)
)
DOCUMENTS = st.one_of(PROSE, st.text(max_size=200), st.text(" \n\t\x1c\u2028", max_size=5))
BUDGETS = st.tuples(st.sampled_from([24, 33, MAX_LENGTH]), st.sampled_from([0, 5, 12]))

thorough = settings(max_examples=100, deadline=None)


@functools.cache
def tokenizer(max_length=MAX_LENGTH, instruction=""):
    return TextTokenizer(ensure_tiny_m3(), max_length, Prompt(instruction))


@functools.cache
def chunker(max_tokens=None, overlap=0, by="tokens", instruction="", **more):
    config = ChunkConfig(by=by, max_tokens=max_tokens, overlap=overlap, **more)
    return Chunker(config, tokenizer(instruction=instruction))


def spans(passages: Passages) -> list[tuple[int, int]]:
    return list(zip(passages.start.tolist(), passages.end.tolist(), strict=True))


def ids(passages: Passages) -> list[list[int]]:
    ends = passages.tokens.offsets.tolist()
    return [passages.tokens.values[a:b].tolist() for a, b in itertools.pairwise(ends)]


def tokens_of(text: str) -> int:
    return len(BARE.encode(text).ids)


def uncovered(document, found):
    covered = np.zeros(len(document), dtype=bool)
    for start, end in found:
        covered[start:end] = True
    return [c for c, is_in in zip(document, covered, strict=True) if not (is_in or c.isspace())]


# Passages of at most so many tokens


@settings(max_examples=200, deadline=None)
@given(DOCUMENTS, BUDGETS)
@example("½" * 20, (24, 0))
@example("\ufdfa" * 4, (24, 0))
@example("\n\n  " + "word " * 60, (24, 0))
def test_passages_cover_the_document_in_order_within_the_budget(document, budget):
    passages = chunker(*budget).passages([document])
    found = spans(passages)
    assert passages.texts == [document[start:end] for start, end in found]
    assert all(text == text.strip() != "" for text in passages.texts)
    assert uncovered(document, found) == []
    lengths = [tokens_of(text) for text in passages.texts]
    assert max(lengths, default=0) <= budget[0]
    assert passages.tokens.lengths.tolist() == lengths
    assert not passages.tokens.truncated.any()
    tokenized = [tokenizer().tokenize([text]).values.tolist() for text in passages.texts]
    assert ids(passages) == tokenized
    for before, after in itertools.pairwise(found):
        assert before[0] < after[0]
        assert before[1] < after[1]
        shared = document[after[0] : before[1]].strip()
        assert not shared or tokens_of(shared) - tokenizer().overhead <= budget[1]


@thorough
@given(st.lists(DOCUMENTS, max_size=4), BUDGETS)
def test_passages_depend_neither_on_neighbours_nor_on_the_chunkers_past(documents, budget):
    together = chunker(*budget).passages(documents)
    config = ChunkConfig(max_tokens=budget[0], overlap=budget[1])
    alone = [Chunker(config, tokenizer()).passages([document]) for document in documents]
    assert together.texts == [text for passages in alone for text in passages.texts]
    assert spans(together) == [span for passages in alone for span in spans(passages)]
    assert ids(together) == [row for passages in alone for row in ids(passages)]
    numbers = [i for i, passages in enumerate(alone) for _ in passages.texts]
    assert together.document.tolist() == numbers


def test_passages_with_overlap_repeat_the_end_of_the_one_before():
    document = " ".join(f"w{i}" for i in range(200))
    plain, overlapping = (spans(chunker(24, n).passages([document])) for n in (0, 10))
    assert all(a[1] < b[0] for a, b in itertools.pairwise(plain))
    assert all(a[1] > b[0] for a, b in itertools.pairwise(overlapping))
    assert len(overlapping) > len(plain) > 3


def test_passages_document_that_fits_is_one_without_its_outer_whitespace():
    passages = chunker(24).passages(["\n\t a b\n\nc \u3000"])
    assert passages.texts == ["a b\n\nc"]
    assert spans(passages) == [(3, 9)]


@pytest.mark.parametrize("by", ["tokens", "none"])
def test_passages_of_whitespace_are_none_and_others_keep_their_documents(by):
    for documents in ([], [""], [" \n\t\u3000", "", "\x1c"]):
        passages = chunker(by=by).passages(documents)
        assert passages.texts == [] == spans(passages)
        assert (len(passages.tokens), len(passages.document)) == (0, 0)
    passages = chunker(by=by).passages(["", "one", " ", "two", ""])
    assert passages.texts == ["one", "two"]
    assert passages.document.tolist() == [1, 3]


def test_passages_as_many_as_documents_are_still_those_of_the_passages():
    """One document has none, another has two: they prefer paragraphs."""
    first, second = " ".join(["alpha"] * 12), " ".join(["beta"] * 12)
    passages = chunker(48).passages([" ", f"{first}\n\n{second}"])
    assert passages.texts == [first, second]
    assert passages.document.tolist() == [1, 1]
    assert ids(passages) == [BARE.encode(text).ids for text in (first, second)]


def test_chunker_without_max_tokens_takes_the_models():
    document = " ".join(["word"] * 200)
    assert chunker().max_tokens == MAX_LENGTH
    assert spans(chunker().passages([document])) == spans(chunker(MAX_LENGTH).passages([document]))


# Instructions


@pytest.mark.parametrize("instruction", ["passage: ", "passage:", "为这个句子生成表示:"])
def test_passages_with_instruction_keep_the_budget(instruction):
    """An instruction that ends without a space changes the tokens of the first word."""
    choose = random.Random(0).choices
    document = " ".join("".join(choose("abcDEF", k=1 + i % 6)) for i in range(600))
    passages = chunker(33, instruction=instruction).passages([document])
    assert 24 < passages.tokens.lengths.max() <= 33
    assert not passages.tokens.truncated.any()


# Titles


TITLES = st.one_of(
    st.none(),
    st.sampled_from(["", " \n", "A title", "深度学习", "½" * 9, "naïve " * 40, "x" * 300, "Ray\n"]),
    st.text(max_size=40),
)


@functools.cache
def titled(max_tokens=None, overlap=0, by="tokens", instruction=""):
    return chunker(max_tokens, overlap, by, instruction, title_prefix=True)


@settings(max_examples=200, deadline=None)
@given(DOCUMENTS, TITLES, BUDGETS, st.sampled_from(["", "passage: "]))
@example("½" * 20, "½" * 9, (24, 0), "")
def test_passages_title_and_instruction_count_but_are_not_in_the_text(
    document, title, budget, instruction
):
    passages = titled(*budget, instruction=instruction).passages([document], [title])
    found = spans(passages)
    assert passages.texts == [document[start:end] for start, end in found]
    assert uncovered(document, found) == []
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(found))
    assert max(passages.tokens.lengths, default=0) <= budget[0]
    cuts = passages.tokens.truncated.tolist()
    for text, row, cut in zip(passages.texts, ids(passages), cuts, strict=True):
        if cut:
            assert tokens_of(instruction + encoder_input(title, "")) > (budget[0] - 2) // 2
        else:
            assert row == BARE.encode(instruction + encoder_input(title, text)).ids


def test_passages_each_document_has_its_own_title():
    documents = ["one", "two " * 40, "three"]
    passages = titled(24).passages(documents, ["First", "Second", None])
    titles = ["First", *["Second"] * (len(passages.texts) - 2), None]
    assert ids(passages) == [
        BARE.encode(encoder_input(title, text)).ids
        for title, text in zip(titles, passages.texts, strict=True)
    ]
    assert len(titles) > 4


def test_passages_title_only_where_asked_for():
    plain = chunker(24).passages(["a text"], ["A title"])
    assert ids(plain) == [BARE.encode("a text").ids]
    assert ids(titled(24).passages(["a text"])) == ids(plain)


def test_passages_title_leaves_its_room_to_the_text():
    """Budgets are used: what a title of five tokens takes is five tokens of text."""
    document = "a " * 400
    passages = titled(24).passages([document], ["b c d e f"])
    assert passages.tokens.lengths.tolist()[:-1] == [24] * (len(passages.texts) - 1)
    assert len(passages.texts[0].split()) == 24 - 2 - 5


@pytest.mark.parametrize("by", ["tokens", "none"])
@pytest.mark.parametrize(("words", "is_cut"), [(31, False), (32, True), (5000, True)])
def test_passages_title_of_more_than_half_the_budget_is_cut_and_said_so(by, words, is_cut):
    title = " ".join("a" * words)
    passages = titled(by=by).passages(["b c", "d"], [title, "e"])
    kept = " ".join("a" * min(words, 31))
    assert ids(passages)[0] == BARE.encode(f"{kept}\nb c").ids
    assert passages.tokens.truncated.tolist() == [is_cut, False]


def test_passages_title_is_cut_between_words():
    title = "abcdef " * 30
    found = ids(titled().passages(["z"], [title]))[0]
    assert any(found == BARE.encode(("abcdef " * n).strip() + "\nz").ids for n in range(5, 31))


@pytest.mark.parametrize("title", ["x" * 50, "深度学习" * 20, "½" * 20])
def test_passages_smallest_budget_with_a_long_title_is_kept(title):
    passages = titled(3).passages(["a b c"], [title])
    assert passages.texts == ["a", "b", "c"]
    assert max(passages.tokens.lengths) <= 3
    assert passages.tokens.truncated.all()


def test_passages_by_none_title_comes_before_what_is_truncated():
    document = "a " * 100
    passages = titled(by="none").passages([document], ["b c"])
    assert ids(passages)[0] == BARE.encode("b c\n" + "a " * 60).ids
    assert passages.tokens.truncated.tolist() == [True]
    assert passages.texts == [document.strip()]


# Headings


SECTION = " ".join(["word"] * 9)


def test_passages_of_markdown_begin_at_headings():
    document = "".join(f"## Part {i}\n\n{SECTION}.\n\n{SECTION}.\n\n" for i in range(6))
    passages = chunker(60).passages([document])
    assert [text.partition("\n")[0] for text in passages.texts] == [
        f"## Part {i}" for i in range(6)
    ]
    plain = chunker(60, markup="plain").passages([document])
    assert plain.texts != passages.texts


def test_passages_small_sections_stay_together_below_a_higher_heading():
    small = "## b\n\nc\n\n"
    document = f"# a\n\n{small}{small}# a\n\n{small}{small}{small}"
    budget = tokens_of(f"# a\n\n{small * 3}")
    assert chunker(budget).passages([document]).texts == [
        f"# a\n\n{small * 2}".strip(),
        f"# a\n\n{small * 3}".strip(),
    ]


def test_passages_long_section_is_cut_at_its_paragraphs():
    document = f"# One\n\n{SECTION}\n\n{SECTION}\n\n{SECTION}\n\n# Two\n\n{SECTION}"
    texts = chunker(36).passages([document]).texts
    assert texts == [f"# One\n\n{SECTION}", SECTION, SECTION, f"# Two\n\n{SECTION}"]


def test_passages_underlined_headings_count_in_markdown_only():
    document = f"intro {SECTION}\n\nOne\n===\n\n{SECTION}\n\n{SECTION}"
    texts = chunker(60, markup="markdown").passages([document]).texts
    assert [text[:5] for text in texts] == ["intro", "One\n="]
    assert chunker(60).passages([document]).texts != texts


# Words and characters


SPACED = """state-of-the-art un*believ*able don't naïve snake_case I.B.M. привет שָׁלוֹם مرحبا
می\u200cخواهم नमस्ते 한국어로 ½ (see). R&D (see), l’été x² a/b/c e-mail@example.com **bold** 3.14
e\u0301\u0323a Thє abcdefgh"""


@thorough
@given(
    st.lists(st.sampled_from(SPACED.split()), min_size=1, max_size=80),
    BUDGETS,
    st.sampled_from([" ", "\n", ", ", "\r\n"]),
)
def test_passages_of_languages_with_words_cut_none(words, budget, space):
    passages = chunker(*budget).passages([space.join(words)])
    allowed = set(words) | {word + space.strip() for word in words}
    for text in passages.texts:
        assert set(text.split()) <= allowed


CLUSTERS = ["e\u0301\u0323", "👩‍👩‍👧‍👦", "🏳️‍🌈", "\u1100\u1161\u11a8", "क्षि", "ก็"]


@pytest.fixture(scope="module")
def token_a_character(tmp_path_factory):
    characters = set("".join(CLUSTERS))
    pieces = [("<unk>", 0.0), ("▁", -1.0), *((character, -2.0) for character in characters)]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = Metaspace()
    folder = tmp_path_factory.mktemp("token_a_character")
    tokenizer.save(str(folder / "tokenizer.json"))
    return TextTokenizer(folder, 64)


@pytest.mark.parametrize("overlap", [0, 5])
@pytest.mark.parametrize("cluster", CLUSTERS)
def test_passages_of_one_long_word_are_cut_between_characters(token_a_character, cluster, overlap):
    """Grapheme clusters, that is: what a reader takes for one."""
    chunker = Chunker(ChunkConfig(max_tokens=14, overlap=overlap), token_a_character)
    passages = chunker.passages([cluster * 90])
    assert len(passages.texts) > 5
    assert all(set(text.split(cluster)) == {""} for text in passages.texts)


def test_passages_character_of_more_than_the_budget_is_truncated_and_said_so():
    passages = chunker(5).passages(["a \ufdfa b"])
    assert passages.texts == ["a", "\ufdfa", "b"]
    assert passages.tokens.truncated.tolist() == [False, True, False]
    assert max(passages.tokens.lengths) == 5


# One passage a document


@thorough
@given(DOCUMENTS)
def test_passages_by_none_is_one_truncated_at_the_models_length(document):
    passages = chunker(by="none").passages([document])
    text = document.strip()
    assert passages.texts == [text][: bool(text)]
    for row in ids(passages):
        assert row == tokenizer().tokenize([text]).values.tolist()
        assert len(row) == min(tokens_of(text), MAX_LENGTH)
    assert passages.tokens.truncated.tolist() == [tokens_of(text) > MAX_LENGTH][: bool(text)]


def test_passages_by_none_ignores_the_budget_and_says_what_it_truncates():
    assert chunker(9_999, 9_999, by="none").passages(["some words"]).texts == ["some words"]
    for words, truncated in ((62, False), (63, True)):
        passages = chunker(by="none").passages([" ".join("a" * words)])
        assert passages.tokens.truncated.tolist() == [truncated]
        assert passages.tokens.lengths.tolist() == [64]


# Refusals


@pytest.mark.parametrize(
    ("max_tokens", "overlap", "instruction", "message"),
    [
        (65, 0, "", r"chunk\.max_tokens: expected at most 64 .*, got 65"),
        *(
            (max_tokens, overlap, "", rf"above overlap \({overlap}\).*got {max_tokens}\.")
            for max_tokens, overlap in ((1, 0), (2, 0), (3, 1), (24, 22), (24, 99))
        ),
        (20, 0, "represent this passage: " * 5, "special and instruction tokens, got 20"),
    ],
)
def test_chunker_without_room_is_refused(max_tokens, overlap, instruction, message):
    with pytest.raises(ConfigError, match=message):
        chunker(max_tokens, overlap, instruction=instruction)
    assert chunker(3).passages(["a b c"]).texts == ["a", "b", "c"]


@pytest.mark.parametrize("unit", ["word ", "x", "字"], ids=["one-line", "one-word", "cjk"])
def test_passages_of_a_long_text_without_structure_cover_it_within_the_budget(unit):
    tokenizer = TextTokenizer(ensure_tiny_m3(), 128)
    chunker = Chunker(ChunkConfig(max_tokens=64), tokenizer)
    text = unit * (60_000 // len(unit))
    found = chunker.passages([text])
    assert max(found.tokens.lengths) <= 64
    assert not found.tokens.truncated.any()
    assert "".join(found.texts).replace(" ", "") == text.replace(" ", "")
