"""What differs between architectures."""

from __future__ import annotations

import pytest

from actors.errors import ModelError
from actors.models.families import FAMILIES, family_of


@pytest.mark.parametrize(
    ("model_type", "first", "usable"),
    [("bert", 0, 514), ("roberta", 2, 512), ("xlm-roberta", 2, 512)],
)
def test_family_positions_start_after_padding_where_fairseq_made_them(
    model_type: str, first: int, usable: int
) -> None:
    model = {"model_type": model_type, "max_position_embeddings": 514, "pad_token_id": 1}
    family = family_of(model, "a model")
    assert family.first_position(model) == first
    assert family.usable_positions(model) == usable


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta"])
def test_family_first_position_follows_the_models_own_padding_id(model_type: str) -> None:
    model = {"model_type": model_type, "max_position_embeddings": 514, "pad_token_id": 9}
    assert family_of(model, "a model").first_position(model) == 10


@pytest.mark.parametrize("model", [{"model_type": "gpt2"}, {}])
def test_family_of_unknown_architecture_is_model_error_naming_it(model: dict[str, str]) -> None:
    with pytest.raises(ModelError, match="model 'mine': expected an architecture among") as error:
        family_of(model, "mine")
    assert all(known in error.value.message for known in FAMILIES)
    assert repr(model.get("model_type")) in error.value.message


def test_family_of_a_configured_type_goes_over_the_checkpoints() -> None:
    assert (
        family_of({"model_type": "camembert"}, "mine", model_type="roberta") is FAMILIES["roberta"]
    )


def test_family_of_an_unknown_configured_type_is_model_error_listing_the_known() -> None:
    with pytest.raises(ModelError, match=r"model\.family: expected one of bert, .*got 'brt'"):
        family_of({"model_type": "bert"}, "mine", model_type="brt")
