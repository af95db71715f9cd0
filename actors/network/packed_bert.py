"""The layers of BERT, RoBERTa and XLM-R on the packed layout, for inference only.

Computes the same as transformers' modules, but query, key and value in one product, without a batch
axis, and with GELU and residuals fused where the device supports it (linear.py).

Shape suffixes: T tokens, H hidden size, N heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from actors.network.attention import attend
from actors.network.capped_attention import AttentionRule
from actors.network.linear import Linear, prepared, steady_rows
from actors.network.packing import PackedBatch

_KINDS = ("bert", "roberta", "xlm-roberta")


@dataclass(frozen=True)
class _Norm:
    """Layer normalisation."""

    weight_H: torch.Tensor
    bias_H: torch.Tensor
    eps: float

    @staticmethod
    def of(module: torch.nn.LayerNorm) -> _Norm:
        return _Norm(module.weight, module.bias, module.eps)

    def __call__(self, x_TH: torch.Tensor) -> torch.Tensor:
        return torch.layer_norm(x_TH, self.weight_H.shape, self.weight_H, self.bias_H, self.eps)


@dataclass(frozen=True)
class _Layer:
    qkv: tuple[Linear, ...]
    """One layer for query, key and value; in the last layer one for query, one for the rest."""
    attended: Linear
    attended_norm: _Norm
    up: Linear
    down: Linear
    norm: _Norm

    def finish(self, attended_TH: torch.Tensor, hidden_TH: torch.Tensor) -> torch.Tensor:
        """Return the layer's output, from the attention result and the layer's input."""
        hidden_TH = self.attended_norm(self.attended.plus(attended_TH, hidden_TH))
        return self.norm(self.down.plus(self.up.gelu(hidden_TH), hidden_TH))


class PackedBert:
    """A BERT model; calling it returns the last hidden states [T, H] of a packed micro-batch."""

    def __init__(self, model: Any) -> None:
        """Take over the weights of a BertModel, RobertaModel or XLMRobertaModel.

        The weights are removed from `model`, so that they are never in memory twice.
        """
        embeddings = model.embeddings
        self.words_VH: torch.Tensor = embeddings.word_embeddings.weight
        """Embedding of each token id."""
        # Type 0 is merged into the positions, which saves a lookup for most tokens.
        positions_PH = embeddings.position_embeddings.weight.float()
        types_YH = embeddings.token_type_embeddings.weight.float()
        self._positions_PH = (positions_PH + types_YH[0]).to(self.words_VH.dtype)
        self._types_YH = (types_YH - types_YH[0]).to(self.words_VH.dtype)
        self._norm = _Norm.of(embeddings.LayerNorm)
        self._heads = int(model.config.num_attention_heads)
        *layers, last = model.encoder.layer
        self._layers = [_taken(layer, (slice(None),)) for layer in layers]
        self._last = _taken(last, (slice(1), slice(1, None)))
        size = self.words_VH.shape[1] // self._heads
        self._rule = AttentionRule(causal=False, scale=size**-0.5)

    def __call__(self, packed: PackedBatch) -> torch.Tensor:
        """Return the last hidden states [T, H]."""
        return self._run(packed, first_only=False)

    def first_states(self, packed: PackedBatch) -> torch.Tensor:
        """Return the last hidden state of each passage's first token [N, H].

        For other tokens, the last layer computes only keys and values.
        """
        return self._run(packed, first_only=True)

    def _run(self, packed: PackedBatch, *, first_only: bool) -> torch.Tensor:
        tokens = len(packed.input_ids_T)
        rows = steady_rows(tokens, self.words_VH)
        if first_only and steady_rows(len(packed.firsts_N), self.words_VH) == rows:
            return self._run(packed, first_only=False)[packed.firsts_N]  # saves no rows
        hidden_TH = F.embedding(_up_to(rows, packed.input_ids_T), self.words_VH).add_(
            F.embedding(_up_to(rows, packed.position_ids_T), self._positions_PH)
        )
        if packed.token_type_ids_T is not None:
            hidden_TH += F.embedding(_up_to(rows, packed.token_type_ids_T), self._types_YH)
        hidden_TH = self._norm(hidden_TH)
        for layer in self._layers:
            (qkv,) = layer.qkv
            query_TND, key_TND, value_TND = self._parts(qkv(hidden_TH), 3)
            attended_TND = attend(query_TND, key_TND, value_TND, packed, self._rule)
            hidden_TH = layer.finish(attended_TND.flatten(1), hidden_TH)
        query, key_value = self._last.qkv
        key_TND, value_TND = self._parts(key_value(hidden_TH), 2)
        if first_only:
            hidden_TH = hidden_TH[packed.firsts_N]
        (query_TND,) = self._parts(query(hidden_TH), 1)
        attended_TND = attend(
            query_TND, key_TND, value_TND, packed, self._rule, first_only=first_only
        )
        hidden_TH = self._last.finish(attended_TND.flatten(1), hidden_TH)
        return hidden_TH if first_only else hidden_TH[:tokens]

    def _parts(self, made_TO: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
        """Split into `parts` tensors [T, N, D]: queries, keys, values."""
        return made_TO.view(made_TO.shape[0], parts, self._heads, -1).unbind(1)


def _up_to(rows: int, ids_T: torch.Tensor) -> torch.Tensor:
    """Pad to `rows` by repeating the last id, whose states are finite if the passage's are."""
    more = rows - ids_T.shape[0]
    return torch.cat((ids_T, ids_T[-1:].expand(more))) if more else ids_T


def can_take(model: Any) -> bool:
    """Return whether `PackedBert` supports this transformers model."""
    config = model.config
    return (
        config.model_type in _KINDS
        and config.hidden_act == "gelu"
        and not config.is_decoder
        and not config.add_cross_attention
        and getattr(config, "position_embedding_type", "absolute") == "absolute"
    )


def _taken(layer: Any, groups: tuple[slice, ...]) -> _Layer:
    """Take a layer's weights; each group of query (0), key (1) and value (2) is one product."""
    attention = layer.attention.self
    qkv = [attention.query, attention.key, attention.value]
    taken = _Layer(
        qkv=tuple(_joined(qkv[group]) for group in groups),
        attended=_prepared(layer.attention.output.dense),
        attended_norm=_Norm.of(layer.attention.output.LayerNorm),
        up=_prepared(layer.intermediate.dense),
        down=_prepared(layer.output.dense),
        norm=_Norm.of(layer.output.LayerNorm),
    )
    for module in layer.modules():
        if isinstance(module, torch.nn.Linear):
            del module.weight
    return taken


def _joined(linears: Sequence[torch.nn.Linear]) -> Linear:
    weight_OI = torch.cat([linear.weight for linear in linears])
    return prepared(weight_OI, torch.cat([linear.bias for linear in linears]))


def _prepared(linear: torch.nn.Linear) -> Linear:
    return prepared(linear.weight, linear.bias)
