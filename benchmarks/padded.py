"""FlagEmbedding's encoding loop without FlagEmbedding, for machines that cannot install it.

Follows encode_single_device of FlagEmbedding 1.4.2: tokenises everything into Python lists, sorts
by length, pads each batch to its longest text, runs one forward pass, and copies each batch's
vectors to host memory before the next. Omits its probe batch. Attention is transformers' sdpa.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.measure import DTYPES


class Padded:
    """A model with cls pooling and, if requested, M3's heads."""

    def __init__(
        self, folder: Path, outputs: Collection[str], dtype: str, device: str, max_length: int
    ) -> None:
        from transformers import AutoModel, AutoTokenizer

        self._max_length, self._device = max_length, device
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(
            folder, dtype=DTYPES[dtype], attn_implementation="sdpa", local_files_only=True
        )
        self._model = model.to(device).eval()
        self._heads = {
            name: _linear(folder / f"{name}_linear.pt").to(device, DTYPES[dtype])
            for name in outputs
            if name != "dense"
        }
        special = ("cls_token", "eos_token", "pad_token", "unk_token")
        self._unused = {getattr(self._tokenizer, f"{name}_id") for name in special}

    @torch.inference_mode()
    def encode(self, texts: list[str], batch_size: int) -> dict[str, Any]:
        """Return the same as BGEM3FlagModel.encode."""
        rows: list[dict[str, list[int]]] = []
        for start in range(0, len(texts), batch_size):
            found = self._tokenizer(
                texts[start : start + batch_size], truncation=True, max_length=self._max_length
            )
            rows += [{"input_ids": ids} for ids in found["input_ids"]]
        order = np.argsort([-len(row["input_ids"]) for row in rows])
        ordered = [rows[i] for i in order]
        dense: list[np.ndarray] = []
        sparse: list[dict[str, float]] = []
        colbert: list[np.ndarray] = []
        for start in range(0, len(ordered), batch_size):
            batch = self._tokenizer.pad(
                ordered[start : start + batch_size], padding=True, return_tensors="pt"
            ).to(self._device)
            hidden_NLH = self._model(**batch).last_hidden_state
            mask_NL = batch["attention_mask"]
            dense.append(_host(F.normalize(hidden_NLH[:, 0], dim=-1)))
            if "sparse" in self._heads:
                weights_NL = torch.relu(self._heads["sparse"](hidden_NLH)).squeeze(-1)
                sparse += self._weights(_host(weights_NL), batch["input_ids"])
            if "colbert" in self._heads:
                vectors = self._heads["colbert"](hidden_NLH[:, 1:]) * mask_NL[:, 1:, None].float()
                colbert += _kept(_host(F.normalize(vectors, dim=-1)), mask_NL)
        back = np.argsort(order)
        return {
            "dense_vecs": np.concatenate(dense)[back],
            "lexical_weights": [sparse[i] for i in back] if sparse else None,
            "colbert_vecs": [colbert[i] for i in back] if colbert else None,
        }

    def _weights(self, weights_NL: np.ndarray, ids_NL: torch.Tensor) -> Iterator[dict[str, float]]:
        for weights, ids in zip(weights_NL, ids_NL.cpu().tolist(), strict=True):
            found: dict[str, float] = {}
            for weight, token in zip(weights, ids, strict=True):
                if token not in self._unused and weight > found.get(str(token), 0):
                    found[str(token)] = weight
            yield found


def _linear(path: Path) -> torch.nn.Linear:
    state = torch.load(path, weights_only=True)
    linear = torch.nn.Linear(state["weight"].shape[1], state["weight"].shape[0])
    linear.load_state_dict(state)
    return linear


def _host(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _kept(vectors_NLH: np.ndarray, mask_NL: torch.Tensor) -> Iterator[np.ndarray]:
    for vectors, mask in zip(vectors_NLH, mask_NL.cpu().numpy(), strict=True):
        yield vectors[: mask.sum() - 1]
