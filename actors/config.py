"""The configuration of encoders and rerankers.

Reads no files, imports no torch, and is independent of corpora, indexes and clusters.
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
    """The embedding model and its use.

    Vectors may be compared if their space fingerprints are equal. The space fingerprint covers the
    model's files and the keys that change the meaning of a vector: pooling, lengths, instructions,
    normalize, truncate_dim, and whether the model is simulated. It does not cover the place of the
    files, outputs, vector_dtype, dtype, device and max_batch_tokens.
    """

    name: str
    """Hub id ("BAAI/bge-m3"), local folder, "package:<module>/<folder>" (weights installed with a
    Python package) or "builtin:tiny-m3" (a random-weight M3 for debugging)."""
    revision: str | None = None
    """Hub revision; pin a commit for production."""
    heads: str | None = None
    """Folder with sparse_linear.pt and colbert_linear.pt; the model's own folder when not given."""
    pooling: Literal["auto", "cls", "mean", "last_token"] = "auto"
    """Pooling of token vectors into the dense vector. "auto": that of 1_Pooling/config.json, else
    the default of the architecture (cls for encoders, last_token for decoders)."""
    outputs: tuple[Output, ...] = ("dense",)
    """Kinds of vectors that one forward pass computes."""
    max_length: int | None = None
    """Longest passage in tokens, special tokens included; the model's own limit when not given."""
    query_max_length: int | None = None
    """Longest query in tokens; `max_length` when not given."""
    like: str | None = None
    """Name of the published model whose record to use (`python -m pipelines.models`), for a
    checkpoint with another name. When not given: the record of model.name if it exists and fits."""
    family: str | None = None
    """Architecture (bert, xlm-roberta, mistral, ...); when not given: model_type in the model's
    config.json."""
    query_instruction: str | None = None
    """Instruction for every query; when not given, that of the record; "" for no instruction."""
    query_instruction_format: str | None = None
    """Template for instruction and query text, as in "Instruct: {}\\nQuery: {}"; when not given,
    that of the record."""
    query_suffix: str | None = None
    """Text after every query; truncation shortens the query and keeps this text (bge-en-icl:
    "\\n<response>"). When not given: that of the record."""
    examples: tuple[Mapping[str, str], ...] = ()
    """Examples before every query, for in-context learning (bge-en-icl): mappings of instruct,
    query and response."""
    passage_instruction: str | None = None
    """Instruction for every passage; when not given, that of the record; "" for no instruction."""
    passage_instruction_format: str | None = None
    """Template for instruction and passage text; when not given, that of the record."""
    task: str | None = None
    """Task of a model that has instructions for several (llm-embedder: qa, icl, chat, ...)."""
    normalize: bool = True
    """L2-normalise dense and ColBERT vectors (in float32, before the cast to `vector_dtype`)."""
    truncate_dim: int | None = None
    """Number of leading dimensions of dense and ColBERT vectors to keep (Matryoshka); they are cut
    before they are normalised."""
    vector_dtype: Literal["float16", "float32"] = "float16"
    """Stored type of dense and ColBERT vectors."""
    trust_remote_code: bool = False
    """Run the Python code of a checkpoint whose architecture needs it (gte). Batches are padded
    then."""
    weights_dtype: Literal["stored", "float16", "bfloat16"] = "stored"
    """Type to which the weights are rounded first. FlagEmbedding's use_fp16 rounds to float16, on a
    CPU too; use it to compare with its numbers."""
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """Compute type. "auto": on CUDA that of the record, else float16; on a CPU bfloat16 with AMX,
    float32 without."""
    device: str = "auto"
    """PyTorch device; "auto": cuda if available, else cpu."""
    max_batch_tokens: int | None = None
    """Token budget of one forward pass (micro-batch). When not given: 16,384 on CUDA, 3,072 on a
    CPU, where larger batches do not fit the caches."""
    simulated_tokens_per_second: float | None = None
    """Simulate a device of this speed, to size a cluster before it exists: nothing is computed, and
    the vectors have the right sizes but no meaning."""

    def __post_init__(self) -> None:
        """Raise for a value that would silently change the result.

        Raises:
            ModelError: a field has a value that is not allowed.
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
    """The reranker and its use; the defaults are those of FlagEmbedding."""

    name: str
    """Hub id ("BAAI/bge-reranker-v2-m3"), local folder, s3://, ..., as for model.name."""
    revision: str | None = None
    """Hub revision; pin a commit for production."""
    max_length: int = 512
    """Longest pair in tokens, special tokens included. The prompt and separators of LLM rerankers
    are not counted."""
    query_max_length: int | None = None
    """Longest query in tokens; three quarters of `max_length` when not given."""
    too_long: Literal["truncate", "refuse"] = "truncate"
    """Treatment of a pair that is too long. "truncate": the query is cut, then the passage, and the
    answer reports it; "refuse": the pair is an error."""
    prompt: str | None = None
    """Prompt after the pair, for LLM rerankers; that of the model's training when not given."""
    cutoff_layers: tuple[int, ...] | None = None
    """Layers after which a layerwise or lightweight reranker scores, ascending; when not given: the
    last one."""
    compress_layers: tuple[int, ...] = ()
    """Layers before which a lightweight reranker averages groups of a passage's hidden states."""
    compress_ratio: int = 1
    """Number of hidden states in a group, for `compress_layers`."""
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """Compute type. "auto": float16 on CUDA, bfloat16 for Gemma 2; on a CPU bfloat16 with AMX,
    float32 without."""
    device: str = "auto"
    """PyTorch device; "auto": cuda if available, else cpu."""
    max_batch_tokens: int | None = None
    """Token budget of one forward pass; when not given: 16,384 on CUDA, 3,072 on a CPU."""
    trust_remote_code: bool = False
    """Run the Python code of a checkpoint whose architecture needs it."""

    def __post_init__(self) -> None:
        """Raise for a value that would silently change the result.

        Raises:
            ModelError: a field has a value that is not allowed.
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
    """Raise ModelError for a word that a field does not allow, and for an integer below 1."""
    for name, kind in get_type_hints(type(config)).items():
        value, allowed = getattr(config, name), get_args(kind)
        expected = ""
        if get_origin(kind) is Literal and value not in allowed:
            expected = f"one of {', '.join(allowed)}"
        if type(value) is int and value < 1:
            expected = "1 or more"
        if expected:
            raise ModelError(f"{section}.{name}: expected {expected}, got {value!r}.")
