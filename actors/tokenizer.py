"""Text to token ids, exactly as tokenizer.json says.

The pipeline in tokenizer.json is run by the `tokenizers` library itself: transformers 5 rebuilds
some pipelines (XLM-R) from the vocabulary and gives other ids. Knows no torch and no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from actors.errors import ModelError
from actors.model_files import read_json

TOKENS_COLUMN = "input_ids"
"""Name of the list<int32> column of a token block."""

# Special tokens that carry no lexical meaning (FlagEmbedding's list, plus BERT's [SEP], which is
# XLM-R's eos under another name).
_NON_LEXICAL = ("cls_token", "sep_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of several texts as one flat buffer: the layout of an Arrow ListArray."""

    values: np.ndarray
    """int32 [total tokens], special tokens included."""
    offsets: np.ndarray
    """int32 [texts + 1]."""
    truncated: np.ndarray
    """bool [texts]: the text had more tokens than fit."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int32 [texts]: tokens of each text."""
        return np.diff(self.offsets)

    def to_arrow(self) -> pa.ListArray:
        """The same two buffers as list<int32>, without a copy."""
        return pa.ListArray.from_arrays(pa.array(self.offsets), pa.array(self.values))


class TextTokenizer:
    """A model's tokenizer with its padding off, its truncation ours, an instruction put before."""

    def __init__(self, folder: Path, max_length: int, instruction: str = "") -> None:
        """Load `folder`/tokenizer.json; `max_length` counts special tokens and instruction."""
        self.max_length = max_length
        self.instruction = instruction
        self._tokenizer = _load(folder)
        self._tokenizer.no_padding()  # some published files pad to 128
        self._tokenizer.enable_truncation(max_length)
        self.overhead = len(self._tokenizer.encode(instruction).ids)
        """Tokens that are not the text's own: special ones and the instruction's."""

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Token ids of each text, special tokens on, cut at `max_length`."""
        if self.instruction:
            texts = [self.instruction + text for text in texts]
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        offsets = np.zeros(len(encodings) + 1, dtype=np.int32)
        np.cumsum([len(e.ids) for e in encodings], out=offsets[1:])
        values = np.empty(int(offsets[-1]), dtype=np.int32)
        for start, encoding in zip(offsets, encodings, strict=False):
            ids = encoding.ids
            values[start : start + len(ids)] = ids
        truncated = np.fromiter((bool(e.overflowing) for e in encodings), dtype=bool)
        return TokenizedTexts(values, offsets, truncated)

    def without_truncation(self) -> Tokenizer:
        """A bare copy that never cuts, for a splitter that counts the tokens of a text."""
        copy = Tokenizer.from_str(self._tokenizer.to_str())
        copy.no_truncation()
        return copy


def non_lexical_ids(folder: Path) -> frozenset[int]:
    """Ids that never enter a sparse vector: cls, sep, eos, pad and unk (mask is kept).

    From special_tokens_map.json and tokenizer_config.json, resolved through tokenizer.json.
    """
    names: set[str] = set()
    for filename in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / filename
        if path.exists():
            names.update(_named_tokens(read_json(path)))
    tokenizer = _load(folder)
    ids = (tokenizer.token_to_id(name) for name in names)
    return frozenset(i for i in ids if i is not None)


def _load(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises nothing narrower
        raise ModelError(
            f"{path}: expected a tokenizer, found: {error!s:.120}.", "Download it again."
        ) from error


def _named_tokens(record: dict[str, object]) -> Iterator[str]:
    for key in _NON_LEXICAL:
        token = record.get(key)
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str):
            yield token
