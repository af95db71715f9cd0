"""What a reranker is asked to be. Knows no files and no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from actors.errors import ModelError

RerankerKind = Literal["encoder", "llm", "layerwise", "lightweight"]


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
        for key in ("max_length", "query_max_length", "compress_ratio", "max_batch_tokens"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ModelError(f"reranker.{key}: expected 1 or more, got {value}.")
        for key, allowed in (
            ("too_long", ("truncate", "refuse")),
            ("dtype", ("auto", "float16", "bfloat16", "float32")),
        ):
            value = getattr(self, key)
            if value not in allowed:
                raise ModelError(
                    f"reranker.{key}: expected one of {', '.join(allowed)}, got {value!r}."
                )
        for key in ("cutoff_layers", "compress_layers"):
            layers = tuple(getattr(self, key) or ())
            if list(layers) != sorted(set(layers)) or any(layer < 1 for layer in layers):
                raise ModelError(
                    f"reranker.{key}: expected layers from 1 on, ascending, got {list(layers)}."
                )
            object.__setattr__(self, key, layers or (None if key == "cutoff_layers" else ()))
