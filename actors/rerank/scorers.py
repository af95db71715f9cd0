"""From a packed micro-batch of pairs to scores: one function for each kind of reranker.

What FlagEmbedding 1.4.2 computes (lightweight: 1.3.5), inference/reranker.
Shape suffixes: T tokens, N pairs, H hidden size, L layers that score.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeAlias

import torch

from actors import backbone
from actors.errors import ModelError
from actors.families import FAMILIES
from actors.forward import Backbone, first_states
from actors.packed_bert import PackedBert, can_take
from actors.packing import PackedBatch
from actors.rerank.checkpoint import RerankerFiles
from actors.rerank.compression import Spans, compressed
from actors.rerank.config import RerankerConfig
from actors.rerank.decoder import DecoderShape, PackedDecoder
from actors.rerank.weights import check_weights, read_weights

Scorer: TypeAlias = Callable[[PackedBatch, Spans], torch.Tensor]
"""Scores [N, L] of a micro-batch."""


def encoder_scorer(files: RerankerFiles, dtype: torch.dtype, device: torch.device) -> Scorer:
    """Cross-encoders: a classifier of one label over the first token's state.

    Raises:
        ModelError: more labels than one, a damaged checkpoint, an architecture without a record.
    """
    from transformers import AutoModelForSequenceClassification

    own = {"trust_remote_code": True} if files.remote_code else {}
    auto, packed = AutoModelForSequenceClassification, not files.remote_code
    model, _ = backbone.load_pretrained(auto, files.folder, dtype, device, packed=packed, **own)
    if model.config.num_labels != 1:
        raise ModelError(
            f"reranker {files.name!r}: expected one label, found {model.config.num_labels}.",
            "It classifies, and does not rank.",
        )
    if files.remote_code:
        return lambda packed, _: backbone.padded(model, packed).logits.view(-1, 1)
    base = model.base_model
    states = _states(files, base)
    # In float32: half precision would round near scores to the same one.
    pooler, classifier = getattr(base, "pooler", None), model.classifier.float()
    pooler = pooler and pooler.float()

    def score(packed: PackedBatch, _: Spans) -> torch.Tensor:
        first_N1H = first_states(states, packed).float()[:, None]
        logits: torch.Tensor = classifier(pooler(first_N1H) if pooler else first_N1H)
        return logits.view(-1, 1)

    return score


def llm_scorer(files: RerankerFiles, yes: int, dtype: torch.dtype, device: torch.device) -> Scorer:
    """Language models: the logit of the token `yes` after the last one.

    Raises:
        ModelError: a damaged checkpoint, or an architecture without a record.
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


def layerwise_scorer(
    files: RerankerFiles, config: RerankerConfig, dtype: torch.dtype, device: torch.device
) -> Scorer:
    """LayerWiseMiniCPM: after k layers, head k - start_layer over the normed last state.

    Raises:
        ModelError: a layer that has no head, or a damaged checkpoint.
    """
    decoder, weights = _decoder(files, DecoderShape.minicpm(files.config), dtype, device)
    first = int(files.config["start_layer"])
    cutoffs = _cutoffs(files, config, decoder.shape.layers)
    heads_LH = [_head(files, weights, layer - first) for layer in cutoffs]

    def score(packed: PackedBatch, _: Spans) -> torch.Tensor:
        hidden_TH, found = decoder.embed(packed), []
        for number in range(cutoffs[-1]):
            hidden_TH = decoder.layer(number, hidden_TH, packed)
            if number + 1 in cutoffs:
                found.append(decoder.norm(_last(hidden_TH, packed)))
        return _scores(found, heads_LH, None)

    return score


def lightweight_scorer(
    files: RerankerFiles, config: RerankerConfig, dtype: torch.dtype, device: torch.device
) -> Scorer:
    """CostWiseGemma: as layerwise, with passages compressed between layers, and capped logits.

    The i-th of the layers that score has head i, whichever layer it is: upstream's way.

    Raises:
        ModelError: a layer that has no head, or a damaged checkpoint.
    """
    decoder, weights = _decoder(files, DecoderShape.gemma2(files.config), dtype, device)
    cutoffs = _cutoffs(files, config, decoder.shape.layers)
    heads_LH = [_head(files, weights, place) for place in range(len(cutoffs))]
    softcap = files.config.get("final_logit_softcapping")
    compress = set(config.compress_layers) if config.compress_ratio > 1 else set()

    def score(packed: PackedBatch, spans: Spans) -> torch.Tensor:
        hidden_TH, found = decoder.embed(packed), []
        for number in range(cutoffs[-1]):
            if number in compress:
                hidden_TH, packed = compressed(hidden_TH, packed, spans, config.compress_ratio)
            hidden_TH = decoder.layer(number, hidden_TH, packed)
            if number + 1 in cutoffs:
                found.append(decoder.norm(_last(hidden_TH, packed)))
        return _scores(found, heads_LH, softcap)

    return score


def _states(files: RerankerFiles, model: torch.nn.Module) -> Backbone:
    if files.family is None:
        raise ModelError(
            f"reranker {files.name!r}: expected an architecture among "
            f"{', '.join(sorted(FAMILIES))}, found {files.config.get('model_type')!r}."
        )
    if can_take(model):
        return PackedBert(model)
    return functools.partial(backbone.run, model, files.family)


def _decoder(
    files: RerankerFiles, shape: DecoderShape, dtype: torch.dtype, device: torch.device
) -> tuple[PackedDecoder, dict[str, torch.Tensor]]:
    weights = read_weights(files, dtype, device)
    check_weights(files, weights, set(shape.weight_names()))
    return PackedDecoder(shape, weights), weights


def _cutoffs(files: RerankerFiles, config: RerankerConfig, layers: int) -> tuple[int, ...]:
    cutoffs = config.cutoff_layers or (layers,)
    first = int(files.config["start_layer"])
    if cutoffs[0] < first or cutoffs[-1] > layers:
        raise ModelError(
            f"reranker.cutoff_layers: expected layers from {first} to {layers} of {files.name}, "
            f"got {list(cutoffs)}."
        )
    return cutoffs


def _head(files: RerankerFiles, weights: dict[str, torch.Tensor], number: int) -> torch.Tensor:
    name = f"lm_head.{number}.linear_head.weight"
    check_weights(files, weights, {name})
    return weights[name][0]


def _last(hidden_TH: torch.Tensor, packed: PackedBatch) -> torch.Tensor:
    """The state of each pair's last token."""
    return hidden_TH[packed.cu_seqlens[1:].long() - 1]


def _scores(
    states_LNH: list[torch.Tensor], heads_LH: list[torch.Tensor], softcap: float | None
) -> torch.Tensor:
    # In float32: a score of 8 bits would be the same for many pairs.
    logits = [
        states.float() @ head.float() for states, head in zip(states_LNH, heads_LH, strict=True)
    ]
    return _capped(torch.stack(logits, dim=1), softcap)


def _capped(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap
