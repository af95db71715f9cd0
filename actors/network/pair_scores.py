"""Compute scores from a packed micro-batch of pairs, with one function per kind of reranker.

Equivalent to inference/reranker of FlagEmbedding 1.4.2 (lightweight: 1.3.5).
Shape suffixes: T tokens, N pairs, H hidden size, L layers that score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from actors.config import RerankerConfig
from actors.errors import ModelError
from actors.models.reranker_files import RerankerFiles
from actors.network import backbone
from actors.network.decoder import DecoderShape, PackedDecoder
from actors.network.forward import Backbone, first_states
from actors.network.packing import PackedBatch, pack


@dataclass(frozen=True)
class Spans:
    """Positions of the passages in N packed pairs."""

    starts: np.ndarray
    """Number of tokens before the passage of each pair, int64 [N]."""
    tail: int
    """Number of tokens after the passage, the same for every pair."""


PairModel: TypeAlias = Callable[[PackedBatch, Spans], torch.Tensor]
"""Function that returns scores [N, L] of a micro-batch of pairs."""


def encoder_scorer(files: RerankerFiles, dtype: torch.dtype, device: torch.device) -> PairModel:
    """Return the model of a cross-encoder: a one-label classifier on the first token's state.

    Raises:
        ModelError: the model has more than one label, or the checkpoint is damaged.
    """
    from transformers import AutoModelForSequenceClassification

    own = {"trust_remote_code": True} if files.remote_code else {}
    auto, packed = AutoModelForSequenceClassification, not files.remote_code
    model, _ = backbone.load_pretrained(auto, files.folder, dtype, device, packed=packed, **own)
    if model.config.num_labels != 1:
        raise ModelError(
            f"reranker {files.name!r}: expected one label, found {model.config.num_labels}.",
            "This model is a classifier; use a reranker.",
        )
    if files.remote_code:
        return lambda packed, _: backbone.padded(model, packed)[0].logits.view(-1, 1)
    base = model.base_model
    states = _states(files, base)
    # In float32, because half precision rounds close scores to the same number.
    pooler, classifier = getattr(base, "pooler", None), model.classifier.float()
    pooler = pooler and pooler.float()

    def score(packed: PackedBatch, _: Spans) -> torch.Tensor:
        first_N1H = first_states(states, packed).float()[:, None]
        logits: torch.Tensor = classifier(pooler(first_N1H) if pooler else first_N1H)
        return logits.view(-1, 1)

    return score


def llm_scorer(
    files: RerankerFiles, yes: int, dtype: torch.dtype, device: torch.device
) -> PairModel:
    """Return the model of an LLM reranker: the logit of the next token `yes`.

    Raises:
        ModelError: the checkpoint is damaged.
    """
    from transformers import AutoModelForCausalLM

    auto = AutoModelForCausalLM
    model, _ = backbone.load_pretrained(auto, files.folder, dtype, device, packed=True)
    states = _states(files, model.base_model)
    yes_H = model.get_output_embeddings().weight[yes].float()
    softcap = files.config.get("final_logit_softcapping")
    return lambda packed, _: _capped(_last(states(packed), packed).float() @ yes_H, softcap)[
        :, None
    ]


def layers_scorer(
    files: RerankerFiles, config: RerankerConfig, dtype: torch.dtype, device: torch.device
) -> PairModel:
    """Return the model of a decoder that scores by a head on the last state after some layers.

    LayerWiseMiniCPM (layerwise) uses head k - start_layer after k layers. CostWiseGemma
    (lightweight) compresses passages between layers and caps logits; its i-th scoring layer uses
    head i, independent of the layer's number, as in FlagEmbedding.

    Raises:
        ModelError: a layer has no head, or the checkpoint is damaged.
    """
    lightweight = files.kind == "lightweight"
    shape_of = DecoderShape.gemma2 if lightweight else DecoderShape.minicpm
    shape = shape_of(files.config)
    weights = _read_weights(files, dtype, device)
    decoder = PackedDecoder(shape, weights)
    cutoffs = config.cutoff_layers or (shape.layers,)
    first = int(files.config["start_layer"])
    if cutoffs[0] < first or cutoffs[-1] > shape.layers:
        raise ModelError(
            f"reranker.cutoff_layers: expected layers from {first} to {shape.layers} of "
            f"{files.name}, got {list(cutoffs)}."
        )
    heads = [
        f"lm_head.{place if lightweight else layer - first}.linear_head.weight"
        for place, layer in enumerate(cutoffs)
    ]
    if missing := sorted({*shape.weight_names(), *heads} - weights.keys()):
        raise ModelError(
            f"{files.folder}: expected every weight of a {files.kind} reranker, "
            f"found {len(missing)} missing ({missing[0]}, ...).",
            "Download the model again; if this repeats, its architecture is not supported.",
        )
    softcap = files.config.get("final_logit_softcapping") if lightweight else None
    compress = set(config.compress_layers) if config.compress_ratio > 1 else set()

    def score(packed: PackedBatch, spans: Spans) -> torch.Tensor:
        hidden_TH, logits = decoder.embed(packed), list[torch.Tensor]()
        for number in range(cutoffs[-1]):
            if number in compress:
                hidden_TH, packed = compressed(hidden_TH, packed, spans, config.compress_ratio)
            hidden_TH = decoder.layer(number, hidden_TH, packed)
            if number + 1 in cutoffs:
                # In float32, because 8 bits of bfloat16 give many pairs the same score.
                states_NH = decoder.norm(_last(hidden_TH, packed)).float()
                logits.append(states_NH @ weights[heads[len(logits)]][0].float())
        return _capped(torch.stack(logits, dim=1), softcap)

    return score


def _states(files: RerankerFiles, model: torch.nn.Module) -> Backbone:
    assert files.family is not None  # `resolve_reranker` has checked this
    return backbone.fastest(model, files.family)


def _last(hidden_TH: torch.Tensor, packed: PackedBatch) -> torch.Tensor:
    """Return the hidden state of each pair's last token [N, H]."""
    return hidden_TH[packed.cu_seqlens[1:].long() - 1]


def _capped(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def compressed(
    hidden_TH: torch.Tensor, packed: PackedBatch, spans: Spans, ratio: int
) -> tuple[torch.Tensor, PackedBatch]:
    """Average neighbouring states of each passage in groups of `ratio`; the last may be smaller.

    Returns the states and their layout, with positions from 0; the starts of passages do not
    change. As CostWise does (FlagEmbedding 1.3.5, inference/reranker/decoder_only/models/
    gemma_model.py), a passage is everything between the separators after query and before prompt.
    """
    lengths = packed.lengths_N.cpu().numpy()
    n_passage = lengths - spans.starts - spans.tail
    groups = -(-n_passage // ratio)
    new_lengths = spans.starts + groups + spans.tail
    # Place of each token in its pair before and after compression.
    pair_T = np.repeat(np.arange(len(lengths)), lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    new_offsets = np.concatenate([[0], np.cumsum(new_lengths)])
    at_T = np.arange(offsets[-1]) - offsets[pair_T]
    start_T, n_T = spans.starts[pair_T], n_passage[pair_T]
    inside_T = at_T - start_T
    place_T = np.where(
        inside_T < 0,
        at_T,
        np.where(inside_T < n_T, start_T + inside_T // ratio, at_T - n_T + groups[pair_T]),
    )
    target_T = torch.from_numpy(place_T + new_offsets[pair_T]).to(hidden_TH.device)
    sums = hidden_TH.new_zeros((int(new_offsets[-1]), hidden_TH.shape[1]))
    sums.index_add_(0, target_T, hidden_TH)
    counts = torch.bincount(target_T, minlength=len(sums)).to(hidden_TH.dtype)
    layout = pack(
        np.zeros(int(new_offsets[-1]), np.int32),  # token ids are no longer needed
        new_offsets,
        first_position=0,
        device=hidden_TH.device,
    )
    return sums / counts[:, None], layout


def _read_weights(
    files: RerankerFiles, dtype: torch.dtype, device: torch.device
) -> dict[str, torch.Tensor]:
    """Read all tensors of the folder's safetensors files, by their names."""
    from safetensors import safe_open

    weights: dict[str, torch.Tensor] = {}
    for path in sorted(files.folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118  no mapping
                    weights[name] = file.get_tensor(name).to(device, dtype)
        except Exception as error:  # safetensors raises no narrower type
            raise ModelError(
                f"{path}: expected weights, found: {error!s:.120}.", "Download the file again."
            ) from error
    if not weights:
        raise ModelError(f"{files.folder}: expected *.safetensors files, found none.")
    return weights
