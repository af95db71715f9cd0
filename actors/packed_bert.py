"""The layers of BERT, RoBERTa and XLM-R on the packed layout, for inference only.

What transformers' modules compute, from their weights: query, key and value in one matmul, no axis
of batches, GELU and residuals fused where the device has that (linear.py).

Shape suffixes: T tokens, H hidden size, N heads, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from actors.attention import attend
from actors.capped_attention import AttentionRule
from actors.linear import Linear, prepared
from actors.packing import PackedBatch

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
        return F.layer_norm(x_TH, self.weight_H.shape, self.weight_H, self.bias_H, self.eps)


@dataclass(frozen=True)
class _Layer:
    qkv: Linear
    attended: Linear
    attended_norm: _Norm
    up: Linear
    down: Linear
    norm: _Norm


class PackedBert:
    """Calling it gives the last hidden states [T, H] of a packed micro-batch."""

    def __init__(self, model: Any) -> None:
        """Take over the weights of a BertModel, RobertaModel or XLMRobertaModel.

        `model` is used up: its layers lose their weights as they are taken, so that they are never
        in memory twice.
        """
        embeddings = model.embeddings
        self.words_VH: torch.Tensor = embeddings.word_embeddings.weight
        """The embedding of each token id."""
        # Most tokens are of type 0: one table less to look up.
        positions_PH = embeddings.position_embeddings.weight.float()
        types_YH = embeddings.token_type_embeddings.weight.float()
        self._positions_PH = (positions_PH + types_YH[0]).to(self.words_VH.dtype)
        self._types_YH = (types_YH - types_YH[0]).to(self.words_VH.dtype)
        self._norm = _Norm.of(embeddings.LayerNorm)
        self._heads = int(model.config.num_attention_heads)
        self._layers = [_taken(layer) for layer in model.encoder.layer]
        size = self.words_VH.shape[1] // self._heads
        self._rule = AttentionRule(causal=False, window=None, softcap=None, scale=size**-0.5)

    def __call__(self, packed: PackedBatch) -> torch.Tensor:
        """The last hidden states [T, H]."""
        hidden_TH = F.embedding(packed.input_ids_T, self.words_VH).add_(
            F.embedding(packed.position_ids_T, self._positions_PH)
        )
        if packed.token_type_ids_T is not None:
            hidden_TH += F.embedding(packed.token_type_ids_T, self._types_YH)
        hidden_TH = self._norm(hidden_TH)
        for layer in self._layers:
            qkv_T3ND = layer.qkv(hidden_TH).view(len(hidden_TH), 3, self._heads, -1)
            query_TND, key_TND, value_TND = qkv_T3ND.unbind(1)
            attended_TND = attend(query_TND, key_TND, value_TND, packed, self._rule)
            attended_TH = layer.attended.plus(attended_TND.flatten(1), hidden_TH)
            hidden_TH = layer.attended_norm(attended_TH)
            hidden_TH = layer.norm(layer.down.plus(layer.up.gelu(hidden_TH), hidden_TH))
        return hidden_TH


def can_take(model: Any) -> bool:
    """Whether `PackedBert` computes what this transformers model does."""
    config = model.config
    return (
        config.model_type in _KINDS
        and config.hidden_act == "gelu"
        and not config.is_decoder
        and not config.add_cross_attention
        and getattr(config, "position_embedding_type", "absolute") == "absolute"
    )


def _taken(layer: Any) -> _Layer:
    attention = layer.attention.self
    qkv = [attention.query, attention.key, attention.value]
    weight_OI = torch.cat([part.weight for part in qkv])
    bias_O = torch.cat([part.bias for part in qkv])
    taken = _Layer(
        qkv=prepared(weight_OI, bias_O),
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


def _prepared(linear: torch.nn.Linear) -> Linear:
    return prepared(linear.weight, linear.bias)
