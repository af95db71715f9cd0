"""The encoder as MTEB drives one, so that its retrieval tasks judge the very vectors of an index.

    import mteb
    from pipelines.evaluation.mteb_encoder import load_mteb_encoder

    model = load_mteb_encoder(ModelConfig(name="BAAI/bge-m3"))
    mteb.evaluate(model, mteb.get_tasks(tasks=["SciFact"]))

MTEB: Muennighoff et al., "MTEB: Massive Text Embedding Benchmark", EACL 2023. Loads torch.
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
    """Dense vectors through mteb's EncoderProtocol (version 2); similarity is cosine.

    Queries get the encoder's own query instruction, whatever a task suggests. Documents get their
    title and a newline before the text, as with `chunk.title_prefix`. What is neither (of tasks
    other than retrieval) is encoded as passages are.
    """

    def __init__(self, encoder: Encoder, name: str | None = None) -> None:
        """`name`: of the results, as organisation/model; when not given: the model's.

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
        """float32[texts, dim] of batches of `text`; of documents: of `title` and `body`.

        `prompt_type`: "query" for queries. All texts are one call: the encoder makes its own
        batches.

        Raises:
            EncodeError: a text whose vector is not finite.
        """
        texts = [text for batch in inputs for text in _texts(batch)]
        is_query = getattr(prompt_type, "value", prompt_type) == "query"
        encode = self.encoder.encode_queries if is_query else self.encoder.encode_passages
        values = encode(texts)["dense"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return np.asarray(values, np.float32).reshape(-1, self.encoder.info.dim)

    def similarity(self, first: Any, second: Any) -> Any:
        """Cosines of all pairs, [first, second]."""
        return extra("mteb.similarity_functions").cos_sim(first, second)

    def similarity_pairwise(self, first: Any, second: Any) -> Any:
        """Cosines of the pairs in one place, [pairs]."""
        return extra("mteb.similarity_functions").pairwise_cos_sim(first, second)


def load_mteb_encoder(config: ModelConfig, name: str | None = None) -> MtebEncoder:
    """A model, loaded for its dense vectors only.

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
    """What mteb keeps results under: also the space, which lengths and instructions decide."""
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
