"""What an encoder and a reranker are asked to be: the configuration of the compute plane.

Knows no files, no torch, and nothing of corpora, indexes or clusters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from actors.errors import ModelError

Output = Literal["dense", "sparse", "colbert"]
Pooling = Literal["cls", "mean", "last_token"]
RerankerKind = Literal["encoder", "llm", "layerwise", "lightweight"]
ComputeDtype = Literal["float16", "bfloat16", "float32"]

OUTPUTS: tuple[Output, ...] = ("dense", "sparse", "colbert")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One model and how to use it.

    The space fingerprint, equal where vectors may be compared, covers the model's files and
    whatever here decides what a vector means: pooling, lengths, instructions, normalize,
    truncate_dim, and that it is only simulated. Not in it: where the files are, outputs,
    vector_dtype, dtype, device and max_batch_tokens.
    """

    name: str
    """Hub id ("BAAI/bge-m3"), local folder, "package:<module>/<folder>" (weights installed with a
    Python package) or "builtin:tiny-m3" (a random-weight M3 for debugging)."""
    revision: str | None = None
    """Hub revision; pin a commit for production."""
    heads: str | None = None
    """Folder with sparse_linear.pt and colbert_linear.pt; the model's own folder when not given."""
    pooling: Literal["auto", "cls", "mean", "last_token"] = "auto"
    """How token vectors become the dense one; "auto" reads 1_Pooling/config.json, else what the
    architecture goes by (cls for encoders, last_token for decoders)."""
    outputs: tuple[Output, ...] = ("dense",)
    """What one forward pass yields."""
    max_length: int | None = None
    """Longest passage in tokens, special tokens included; the model's own limit when not given."""
    query_max_length: int | None = None
    """Longest query in tokens; `max_length` when not given."""
    like: str | None = None
    """The published model whose record applies (`python -m pipelines.models`), for a checkpoint
    under another name; when not given: the one of model.name, if there is one and it fits."""
    family: str | None = None
    """The architecture to run it as (bert, xlm-roberta, mistral, ...); when not given: what
    config.json says (model_type)."""
    query_instruction: str | None = None
    """The instruction of every query; when not given: the record's; "" for none."""
    query_instruction_format: str | None = None
    """Where instruction and text go, as in "Instruct: {}\\nQuery: {}"; when not given: the
    record's."""
    query_suffix: str | None = None
    """Put after every query, whose text is then cut before it (bge-en-icl: "\\n<response>"); when
    not given: the record's."""
    examples: tuple[Mapping[str, str], ...] = ()
    """Put before every query, for in-context learning (bge-en-icl): mappings of instruct, query and
    response."""
    passage_instruction: str | None = None
    """The instruction of every passage; when not given: the record's; "" for none."""
    passage_instruction_format: str | None = None
    """Where instruction and text of a passage go; when not given: the record's."""
    task: str | None = None
    """For a model with instructions for several tasks (llm-embedder: qa, icl, chat, ...)."""
    normalize: bool = True
    """L2-normalise dense and ColBERT vectors (in float32, before the cast to `vector_dtype`)."""
    truncate_dim: int | None = None
    """Keep the first dimensions of dense and ColBERT vectors, before normalising (Matryoshka)."""
    vector_dtype: Literal["float16", "float32"] = "float16"
    """Stored type of dense and ColBERT vectors."""
    trust_remote_code: bool = False
    """Run the Python code that comes with a checkpoint, where its architecture needs that (gte);
    batches are padded then."""
    weights_dtype: Literal["stored", "float16", "bfloat16"] = "stored"
    """Round the weights to this type first, as FlagEmbedding's use_fp16 does also on a CPU; to
    compare with its numbers."""
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """Compute type; "auto": on CUDA the record's, else float16; on a CPU bfloat16 with AMX, float32
    without."""
    device: str = "auto"
    """"auto": cuda when there is one, else cpu."""
    max_batch_tokens: int | None = None
    """Token budget of one forward pass (micro-batch); when not given: 16,384 on CUDA, 3,072 on a
    CPU, where larger ones outgrow the caches."""
    simulated_tokens_per_second: float | None = None
    """Compute nothing: take the time a device of so many tokens a second would, and give vectors of
    the right sizes, which mean nothing. To size a cluster before there is one."""

    def __post_init__(self) -> None:
        """Refuse what would quietly compute something else.

        Raises:
            ModelError: a value that is none of those a field can have.
        """
        object.__setattr__(self, "outputs", tuple(self.outputs))
        if not self.outputs or not set(self.outputs) <= set(OUTPUTS):
            raise ModelError(f"outputs: expected some of {', '.join(OUTPUTS)}, got {self.outputs}.")
        rate = self.simulated_tokens_per_second
        if rate is not None and not rate > 0:
            raise ModelError(
                f"model.simulated_tokens_per_second: expected more than 0, got {rate}."
            )
        _check(self, "model")


@dataclass(frozen=True, kw_only=True)
class RerankerConfig:
    """One reranker and how to use it; defaults are FlagEmbedding's."""

    name: str
    """Hub id ("BAAI/bge-reranker-v2-m3"), local folder, s3://, ... as a model's."""
    revision: str | None = None
    """Hub revision; pin a commit for production."""
    max_length: int = 512
    """Longest pair in tokens, special tokens included. For LLM rerankers the prompt and its
    separators come on top."""
    query_max_length: int | None = None
    """Longest query in tokens; three quarters of `max_length` when not given."""
    too_long: Literal["truncate", "refuse"] = "truncate"
    """What happens to a pair that is longer: its query, then its passage is cut, and the answer
    says so; or it is refused."""
    prompt: str | None = None
    """After the pair, for LLM rerankers; when not given: the one the model was trained with."""
    cutoff_layers: tuple[int, ...] | None = None
    """Layerwise and lightweight: score by the states after so many layers, ascending; when not
    given: after the last."""
    compress_layers: tuple[int, ...] = ()
    """Lightweight: before these layers the states of a passage are averaged in groups."""
    compress_ratio: int = 1
    """Lightweight: states in a group."""
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """Compute type; "auto": float16 on CUDA, bfloat16 for Gemma 2; on a CPU bfloat16 with AMX,
    float32 without."""
    device: str = "auto"
    """"auto": cuda when there is one, else cpu."""
    max_batch_tokens: int | None = None
    """Token budget of one forward pass; when not given: 16,384 on CUDA, 3,072 on a CPU."""
    trust_remote_code: bool = False
    """Run the Python code that comes with a checkpoint, where its architecture needs that."""

    def __post_init__(self) -> None:
        """Refuse what would quietly compute something else.

        Raises:
            ModelError: a value that is none of those a field can have.
        """
        if self.query_max_length is None:
            object.__setattr__(self, "query_max_length", self.max_length * 3 // 4)
        _check(self, "reranker")
        for key in ("cutoff_layers", "compress_layers"):
            layers = tuple(getattr(self, key) or ())
            if list(layers) != sorted(set(layers)) or any(layer < 1 for layer in layers):
                raise ModelError(
                    f"reranker.{key}: expected layers from 1 on, ascending, got {list(layers)}."
                )
            object.__setattr__(self, key, layers or (None if key == "cutoff_layers" else ()))


def _check(config: ModelConfig | RerankerConfig, section: str) -> None:
    """Refuse a word that is none of a field's, and a number below 1."""
    for name, kind in get_type_hints(type(config)).items():
        value, allowed = getattr(config, name), get_args(kind)
        expected = ""
        if get_origin(kind) is Literal and value not in allowed:
            expected = f"one of {', '.join(allowed)}"
        if type(value) is int and value < 1:
            expected = "1 or more"
        if expected:
            raise ModelError(f"{section}.{name}: expected {expected}, got {value!r}.")
