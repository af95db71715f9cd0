"""Decoder layers on the packed layout, for checkpoints without a class in transformers.

MiniCPM (Hu et al. 2024, arXiv:2404.06395) is Llama with scaled embeddings and residual branches.
Gemma2 (arXiv:2408.00118) also normalises the output of each branch. Scores of attention are not
capped as in Gemma2, because FlagEmbedding runs its reranker with scaled_dot_product_attention,
which has no cap.

Shape suffixes: T tokens, H hidden size, N heads, K key heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from actors.network.attention import attend
from actors.network.capped_attention import AttentionRule
from actors.network.packing import PackedBatch

Weights = Mapping[str, torch.Tensor]
_MLP = ("gate", "up", "down")


@dataclass(frozen=True)
class DecoderShape:
    """Properties of the layers, from config.json."""

    layers: int
    heads: int
    key_heads: int
    head_dim: int
    eps: float
    rope_base: float
    attention_scale: float
    windows: tuple[int | None, ...]
    """Attention window of each layer in tokens; None for no window."""
    embedding_scale: float
    branch_scale: float
    """Factor of the output of a layer's two residual branches."""
    norm_offset: float
    """Number added to the weights of norms."""
    norms_branches: bool
    """Whether the output of a branch is normalised before it is added."""
    activation: Callable[[torch.Tensor], torch.Tensor]

    @classmethod
    def minicpm(cls, config: Mapping[str, Any]) -> DecoderShape:
        """Return the shape of a LayerWiseMiniCPMForCausalLM."""
        layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
        head_dim = int(config["hidden_size"]) // heads
        return cls(
            layers=layers,
            heads=heads,
            key_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=head_dim,
            eps=float(config["rms_norm_eps"]),
            rope_base=float(config.get("rope_theta", 10_000.0)),
            attention_scale=head_dim**-0.5,
            windows=(None,) * layers,
            embedding_scale=float(config["scale_emb"]),
            branch_scale=float(config["scale_depth"]) / layers**0.5,
            norm_offset=0.0,
            norms_branches=False,
            activation=F.silu,
        )

    @classmethod
    def gemma2(cls, config: Mapping[str, Any]) -> DecoderShape:
        """Return the shape of a CostWiseGemmaForCausalLM."""
        layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
        window = config.get("sliding_window")
        return cls(
            layers=layers,
            heads=heads,
            key_heads=int(config["num_key_value_heads"]),
            head_dim=int(config["head_dim"]),
            eps=float(config["rms_norm_eps"]),
            rope_base=float(config.get("rope_theta", 10_000.0)),
            attention_scale=float(config["query_pre_attn_scalar"]) ** -0.5,
            windows=tuple(None if layer % 2 else window for layer in range(layers)),
            embedding_scale=float(config["hidden_size"]) ** 0.5,
            branch_scale=1.0,
            norm_offset=1.0,
            norms_branches=True,
            activation=lambda x: F.gelu(x, approximate="tanh"),
        )

    def weight_names(self) -> Iterator[str]:
        """Yield the names of all weights that a checkpoint must have, except heads."""
        yield from ("model.embed_tokens.weight", "model.norm.weight")
        norms = ["input_layernorm", "post_attention_layernorm"]
        if self.norms_branches:
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        parts = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in _MLP]
        for layer in range(self.layers):
            yield from (f"model.layers.{layer}.{name}.weight" for name in (*norms, *parts))


class PackedDecoder:
    """Embeddings, layers and final norm of a decoder; the caller runs one layer at a time."""

    def __init__(self, shape: DecoderShape, weights: Weights) -> None:
        """`weights`: by their names in the checkpoint, on the device, in the compute type."""
        self.shape = shape
        self._weights = weights

    def embed(self, packed: PackedBatch) -> torch.Tensor:
        """Return the input of the first layer, [T, H]."""
        words = self._weights["model.embed_tokens.weight"]
        hidden_TH = F.embedding(packed.input_ids_T, words)
        # The scale is rounded to the compute type first, as in FlagEmbedding.
        return hidden_TH * torch.tensor(self.shape.embedding_scale, dtype=hidden_TH.dtype)

    def norm(self, hidden_TH: torch.Tensor) -> torch.Tensor:
        """Apply the norm after the last layer."""
        return self._norm(hidden_TH, "model.norm")

    def layer(self, number: int, hidden_TH: torch.Tensor, packed: PackedBatch) -> torch.Tensor:
        """Return the output [T, H] of layer `number`, counted from 0."""
        name, shape = f"model.layers.{number}", self.shape
        before, after = ("input_layernorm", "post_attention_layernorm")
        branch_TH = self._attend(number, self._norm(hidden_TH, f"{name}.{before}"), packed)
        if shape.norms_branches:
            branch_TH = self._norm(branch_TH, f"{name}.{after}")
            before, after = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
        else:
            before = after
        hidden_TH = hidden_TH + branch_TH * shape.branch_scale
        x_TH = self._norm(hidden_TH, f"{name}.{before}")
        gate = shape.activation(self._linear(x_TH, f"{name}.mlp.gate_proj"))
        up = self._linear(x_TH, f"{name}.mlp.up_proj")
        branch_TH = self._linear(gate * up, f"{name}.mlp.down_proj")
        if shape.norms_branches:
            branch_TH = self._norm(branch_TH, f"{name}.{after}")
        return hidden_TH + branch_TH * shape.branch_scale

    def _attend(self, number: int, x_TH: torch.Tensor, packed: PackedBatch) -> torch.Tensor:
        name, shape = f"model.layers.{number}.self_attn", self.shape
        query_TND, key_TKD, value_TKD = (
            self._linear(x_TH, f"{name}.{part}_proj").view(len(x_TH), heads, shape.head_dim)
            for part, heads in (("q", shape.heads), ("k", shape.key_heads), ("v", shape.key_heads))
        )
        cos_TD, sin_TD = _rotation(packed.position_ids_T, shape, x_TH.dtype)
        rule = AttentionRule(causal=True, window=shape.windows[number], scale=shape.attention_scale)
        attended_TND = attend(
            _rotated(query_TND, cos_TD, sin_TD),
            _rotated(key_TKD, cos_TD, sin_TD),
            value_TKD,
            packed,
            rule,
        )
        return self._linear(attended_TND.flatten(1), f"{name}.o_proj")

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self._weights[f"{name}.weight"])

    def _norm(self, x_TH: torch.Tensor, name: str) -> torch.Tensor:
        """Apply root mean square normalisation in float32."""
        weight_H = self._weights[f"{name}.weight"].float() + self.shape.norm_offset
        wide_TH = x_TH.float()
        scale_T1 = torch.rsqrt(wide_TH.square().mean(-1, keepdim=True) + self.shape.eps)
        return (wide_TH * scale_T1 * weight_H).to(x_TH.dtype)


def _rotation(
    positions_T: torch.Tensor, shape: DecoderShape, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines [T, D] of rotary position embeddings."""
    steps = torch.arange(0, shape.head_dim, 2, device=positions_T.device).float()
    frequencies = shape.rope_base ** (-steps / shape.head_dim)
    angles_TD = (positions_T.float()[:, None] * frequencies).repeat(1, 2)
    return angles_TD.cos().to(dtype), angles_TD.sin().to(dtype)


def _rotated(x_TND: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor) -> torch.Tensor:
    first, second = x_TND.chunk(2, dim=-1)
    return x_TND * cos_TD[:, None] + torch.cat((-second, first), dim=-1) * sin_TD[:, None]
