"""Linear layers with prepared weights equal torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from actors.network import linear
from actors.network.linear import prepared, steady_rows

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Of numbers of about 1; one step of the half types is 2^-8 and 2^-11."""


@pytest.fixture(params=[True, False], ids=["onednn", "plain"])
def _onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(linear, "_has_onednn", lambda: False)
    elif not linear._has_onednn():
        pytest.skip("no oneDNN with bfloat16 here")


@pytest.mark.usefixtures("_onednn")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_prepared_equals_torch_in_float32(dtype: torch.dtype) -> None:
    @settings(max_examples=15, deadline=None)
    @given(tokens=st.integers(1, 70), wide=st.integers(1, 40), out=st.integers(1, 40))
    def check(tokens: int, wide: int, out: int) -> None:
        made = torch.Generator().manual_seed(tokens * wide * out)
        x, residual = torch.randn(tokens, wide, generator=made), torch.randn(tokens, out)
        weight = torch.randn(out, wide, generator=made) / wide**0.5
        bias = torch.randn(out, generator=made)
        x, residual, weight, bias = (each.to(dtype) for each in (x, residual, weight, bias))
        exact = F.linear(x.float(), weight.float(), bias.float())
        with torch.inference_mode():
            layer = prepared(weight, bias)
            found = (layer(x), layer.gelu(x), layer.plus(x, residual.clone()))
        expected = (exact, F.gelu(exact), exact + residual.float())
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == dtype
            atol = TOLERANCE[dtype] * max(theirs.abs().max().item(), 1)
            torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=atol)

    check()


@pytest.mark.usefixtures("_onednn")
def test_prepared_leaves_input_and_residual_as_they_are() -> None:
    x, residual = torch.randn(3, 8), torch.randn(3, 4)
    kept = x.clone(), residual.clone()
    with torch.inference_mode():
        prepared(torch.randn(4, 8), torch.randn(4)).plus(x, residual)
    assert torch.equal(x, kept[0])
    assert torch.equal(residual, kept[1])


@pytest.mark.parametrize(("dtype", "tile"), [(torch.float32, 1), (torch.bfloat16, 16)], ids=str)
def test_steady_rows_are_few_numbers_not_far_above(dtype: torch.dtype, tile: int) -> None:
    like = torch.zeros(1, dtype=dtype)
    if not linear._has_onednn():
        pytest.skip("no oneDNN with bfloat16 here")
    found = {rows: steady_rows(rows, like) for rows in range(1, 4097)}
    assert all(rows <= steady for rows, steady in found.items())
    assert all(steady - rows < max(rows / 32, tile) for rows, steady in found.items())
    assert all(steady_rows(steady, like) == steady for steady in found.values())
    assert len({steady for steady in found.values() if steady <= 2_048}) <= 224


def test_steady_rows_where_code_is_not_made_for_them_are_as_given() -> None:
    assert steady_rows(1_001, torch.zeros(1, dtype=torch.float16)) == 1_001
