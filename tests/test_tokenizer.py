"""Token ids are tokenizer.json's own; nothing is padded, nothing is cut without saying so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from actors.tokenizer import TextTokenizer, non_lexical_ids

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
    instructed = TextTokenizer(folder, 12, instruction).tokenize(texts)
    plain = TextTokenizer(folder, 12).tokenize([instruction + text for text in texts])
    assert instructed.to_arrow().equals(plain.to_arrow())
    assert instructed.truncated.tolist() == plain.truncated.tolist()


@settings(deadline=None)
@given(words=st.lists(st.sampled_from(["the", "capital", "学习"])))
def test_tokenizer_overhead_is_all_that_is_not_the_texts_own(words: list[str]) -> None:
    instruction = "".join(f"{word} " for word in words)  # BERT's words never merge
    own = len(BARE[BERT].encode("Paris, France", add_special_tokens=False).ids)
    tokenizer = TextTokenizer(BERT, 512, instruction)
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


def test_without_truncation_copy_never_cuts_and_leaves_the_original_cutting() -> None:
    tokenizer = TextTokenizer(M3, 5)
    text = "the capital of Paris is the capital of France"
    assert tokenizer.without_truncation().encode(text).ids == BARE[M3].encode(text).ids
    assert tokenizer.tokenize([text]).lengths.tolist() == [5]


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
