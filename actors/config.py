"""What an encoder is asked to be: the one configuration record of the compute plane.

Knows nothing of corpora, indexes or clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Output = Literal["dense", "sparse", "colbert"]
Pooling = Literal["cls", "mean"]
ComputeDtype = Literal["float16", "bfloat16", "float32"]

OUTPUTS: tuple[Output, ...] = ("dense", "sparse", "colbert")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One model and how to use it.

    The space fingerprint, equal where vectors may be compared, covers the model's files and
    whatever here decides what a vector means: pooling, lengths, instructions, normalize,
    truncate_dim. Not in it: where the files are, outputs, vector_dtype, dtype, device and
    max_batch_tokens.
    """

    name: str
    """Hub id ("BAAI/bge-m3"), local folder, "package:<module>/<folder>" (weights installed with a
    Python package) or "builtin:tiny-m3" (a random-weight M3 for debugging)."""
    revision: str | None = None
    """Hub revision; pin a commit for production."""
    heads: str | None = None
    """Folder with sparse_linear.pt and colbert_linear.pt; the model's own folder when not given."""
    pooling: Literal["auto", "cls", "mean"] = "auto"
    """How token vectors become the dense one; "auto" reads 1_Pooling/config.json, else cls."""
    outputs: tuple[Output, ...] = ("dense",)
    """What one forward pass yields."""
    max_length: int | None = None
    """Longest passage in tokens, special tokens included; the model's own limit when not given."""
    query_max_length: int | None = None
    """Longest query in tokens; `max_length` when not given."""
    query_instruction: str = ""
    """Text put before every query."""
    passage_instruction: str = ""
    """Text put before every passage."""
    normalize: bool = True
    """L2-normalise dense and ColBERT vectors (in float32, before the cast to `vector_dtype`)."""
    truncate_dim: int | None = None
    """Keep the first dimensions of dense and ColBERT vectors, before normalising (Matryoshka)."""
    vector_dtype: Literal["float16", "float32"] = "float16"
    """Stored type of dense and ColBERT vectors."""
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """Compute type; "auto": float16 on CUDA, bfloat16 on CPUs with AMX, else float32."""
    device: str = "auto"
    """"auto": cuda when there is one, else cpu."""
    max_batch_tokens: int | None = None
    """Token budget of one forward pass (micro-batch); when not given: 16,384 on CUDA, 2,048 on a
    CPU, where larger ones outgrow the caches."""
