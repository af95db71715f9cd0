"""One text's vectors: out of an encoder's columns, and back."""

from __future__ import annotations

import numpy as np
import pytest
from endpoint import OUTPUTS, tiny_encoder

from actors.config import ModelConfig
from actors.encoder import load_encoder
from actors.text_vectors import TextVectors, columns_of, rows_of

TEXTS = ["what is ray", "", "a much longer text about rivers, bridges and rivers again"]


def encoded() -> tuple[list[TextVectors], object]:
    encoder = tiny_encoder()
    tokens = encoder.passage_tokenizer.tokenize(TEXTS)
    columns = encoder.encode_passages(TEXTS)
    return rows_of(columns, tokens.lengths, tokens.truncated), columns


def test_rows_of_columns_and_back_are_the_columns() -> None:
    rows, columns = encoded()
    assert columns_of(rows, OUTPUTS).equals(columns)


def test_columns_of_some_outputs_are_these_alone() -> None:
    rows, columns = encoded()
    assert columns_of(rows[1:], ("sparse",)).equals(columns.select(["sparse"]).slice(1))


def test_rows_of_a_text_hold_what_was_computed_of_it() -> None:
    rows, _ = encoded()
    first = rows[0]
    assert not first.truncated
    assert first.colbert.shape[0] == first.n_tokens - 1
    assert first.has(OUTPUTS)
    assert not TextVectors(n_tokens=1, truncated=False, dense=first.dense).has(("sparse",))
    assert first.nbytes == sum(
        a.nbytes for a in (first.dense, first.colbert, first.sparse[0], first.sparse[1])
    )


def test_copy_of_a_text_shares_no_memory_with_its_batch() -> None:
    rows, _ = encoded()
    copy = rows[2].copy()
    for name in ("dense", "colbert"):
        assert not np.shares_memory(getattr(copy, name), getattr(rows[2], name))
        np.testing.assert_array_equal(getattr(copy, name), getattr(rows[2], name))
    for mine, theirs in zip(copy.sparse, rows[2].sparse, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("normalize", [True, False])
def test_truncate_gives_what_the_encoder_gives_with_truncate_dim(normalize: bool) -> None:
    config = {"name": "builtin:tiny-m3", "outputs": ("dense", "colbert"), "dtype": "float32"}
    config |= {"normalize": normalize, "vector_dtype": "float32"}
    whole = load_encoder(ModelConfig(**config))
    short = load_encoder(ModelConfig(**config, truncate_dim=8)).encode_passages(TEXTS)
    tokens = whole.passage_tokenizer.tokenize(TEXTS)
    rows = rows_of(whole.encode_passages(TEXTS), tokens.lengths, tokens.truncated)
    for row, text in enumerate(rows):
        cut = text.truncate(8, normalize=normalize)
        np.testing.assert_allclose(cut.dense, short["dense"][row].as_py(), atol=1e-6)
        expected = np.array(short["colbert"][row].as_py()).reshape(-1, 8)
        np.testing.assert_allclose(cut.colbert, expected, atol=1e-6)
