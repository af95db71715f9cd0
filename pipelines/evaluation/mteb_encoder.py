"""Adapt the encoder to MTEB, so that MTEB's retrieval tasks measure the vectors of an index.

    import mteb
    from pipelines.evaluation.mteb_encoder import load_mteb_encoder

    model = load_mteb_encoder(ModelConfig(name="BAAI/bge-m3"))
    mteb.evaluate(model, mteb.get_tasks(tasks=["SciFact"]))

MTEB: Muennighoff et al., "MTEB: Massive Text Embedding Benchmark", EACL 2023. Imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from actors.config import ModelConfig
from actors.encoder import Encoder, load_encoder
from actors.errors import ConfigError
from actors.tokens.tokenizer import encoder_input
from pipelines.evaluation.measures import extra

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_NO_NAME = re.compile(r"[^\w.-]+")


class MtebEncoder:
    """An encoder of dense vectors for mteb's EncoderProtocol (version 2), with cosine similarity.

    Queries get the encoder's own instruction and ignore that of the task. Documents get their title
    and a newline before the text, as with `chunk.title_prefix`. Texts of tasks other than retrieval
    are encoded as passages.
    """

    def __init__(self, encoder: Encoder, name: str | None = None) -> None:
        """`name`: the name of the results, as organisation/model; default: the model's name.

        Raises:
            ConfigError: mteb is not installed, or the encoder gives no dense vectors.
        """
        if "dense" not in encoder.info.outputs:
            found = ", ".join(encoder.info.outputs)
            raise ConfigError(f"mteb: expected an encoder of dense vectors, found one of {found}.")
        self.encoder = encoder
        self.mteb_model_meta = _model_meta(encoder, name or encoder.info.name)

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, prompt_type: Any = None, **_: Any
    ) -> np.ndarray:
        """Return float32 [texts, dim] for batches with `text`, or with `title` and `body`.

        `prompt_type`: "query" for queries. The encoder makes its own batches from all texts.

        Raises:
            EncodeError: the vector of a text is not finite.
        """
        texts = [text for batch in inputs for text in _texts(batch)]
        is_query = getattr(prompt_type, "value", prompt_type) == "query"
        encode = self.encoder.encode_queries if is_query else self.encoder.encode_passages
        values = encode(texts)["dense"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return np.asarray(values, np.float32).reshape(-1, self.encoder.info.dim)

    def similarity(self, first: Any, second: Any) -> Any:
        """Return the cosines of all pairs, [first, second]."""
        return extra("mteb.similarity_functions").cos_sim(first, second)

    def similarity_pairwise(self, first: Any, second: Any) -> Any:
        """Return the cosines of rows at the same position, [pairs]."""
        return extra("mteb.similarity_functions").pairwise_cos_sim(first, second)


def load_mteb_encoder(config: ModelConfig, name: str | None = None) -> MtebEncoder:
    """Load a model for dense vectors only.

    Raises:
        ConfigError: mteb is not installed.
        ModelError: the model cannot be loaded.
    """
    extra("mteb")
    return MtebEncoder(load_encoder(replace(config, outputs=("dense",))), name)


def _texts(batch: Mapping[str, Any]) -> Sequence[str]:
    if "body" not in batch:
        return list(batch["text"])
    bodies = batch["body"]
    titles = batch.get("title") or [None] * len(bodies)
    return [encoder_input(title, body) for title, body in zip(titles, bodies, strict=True)]


def _model_meta(encoder: Encoder, name: str) -> Any:
    """Return the key of mteb's results. Its space fingerprint covers lengths and instructions."""
    info = encoder.info
    if not _HUB_NAME.fullmatch(name):
        name = "packvec/" + _NO_NAME.sub("-", name).strip("-")
    mteb = extra("mteb.models.model_meta")
    return mteb.ModelMeta.create_empty(
        {
            "name": name,
            "revision": info.revision or info.space_fingerprint,
            "embed_dim": info.dim,
            "max_tokens": info.max_length,
            "framework": ["PyTorch"],
            "similarity_fn_name": mteb.ScoringFunction.COSINE,
            "use_instructions": True,
            "experiment_kwargs": {"space": info.space_fingerprint},
        }
    )
