"""The request of a run in comparable form, and the run id.

The id is a hash of the request, so that the same command finds and continues its plan after a
crash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from actors.encoded import SCORE
from actors.fingerprint import fingerprint, score_parts, space_parts
from actors.models.files import ModelFiles
from actors.models.reranker_files import RerankerFiles
from pipelines.config.run import AnyRunConfig, PairsConfig, RunConfig
from pipelines.config.sections import ChunkConfig


@dataclass(frozen=True)
class Request:
    """Everything that determines the result of a run, in comparable form."""

    parts: dict[str, Any]
    """Nested plain data; differences between requests are named by dotted paths."""

    @staticmethod
    def of(config: RunConfig, files: ModelFiles) -> Request:
        """Return the request of a configuration with a resolved model."""
        return Request(
            {
                **_common(config),
                "model": space_parts(config.encoder, files),
                "outputs": sorted(config.outputs),
                "vector_dtype": config.model.vector_dtype,
                "chunk": _chunk_parts(config.chunk, files),
            }
        )

    @staticmethod
    def of_pairs(config: PairsConfig, files: RerankerFiles) -> Request:
        """Return the request of a run that scores pairs."""
        return Request(
            {
                **_common(config),
                "model": score_parts(config.reranker, files),
                "outputs": [SCORE],
                "too_long": config.reranker.too_long,
            }
        )

    @property
    def space_fingerprint(self) -> str:
        """Return the fingerprint that is equal if vectors may be compared."""
        return fingerprint(self.parts["model"])

    @property
    def index_fingerprint(self) -> str:
        """Return the fingerprint that is equal if two generations may belong to one index."""
        parts = {k: v for k, v in self.parts.items() if k not in ("source", "slice")}
        return fingerprint(parts | {"columns": self.parts["source"]["columns"]})

    def run_id(self, **occasion: int | str) -> str:
        """Return the run id of this request.

        `occasion`: values that distinguish runs of the same request; empty for a first run. With
        --fresh: the publication and the source's listing, so that an outdated plan does not block
        the run. For replaying rejects: the generation that has the rejects.
        """
        return fingerprint({"request": self.parts, "occasion": occasion})[:16]

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Return the dotted paths at which the parts of another request differ."""
        return differences(self.parts, other)


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return the dotted paths at which two nested mappings differ."""
    ours, others = dict(_flatten(mine)), dict(_flatten(theirs))
    return sorted(key for key in ours | others if ours.get(key) != others.get(key))


def _common(config: AnyRunConfig) -> dict[str, Any]:
    """Return the parts that determine the result of a run of any kind."""
    source = config.with_absolute_paths().source
    return {
        "source": source.model_dump(mode="json", exclude={"storage_options"}),
        "slice": {"documents": config.slice.documents, "max_tokens": config.slice_max_tokens},
        "index": {
            "store_text": config.index.store_text,
            "colbert_storage": config.index.colbert_storage,
        },
    }


def _chunk_parts(chunk: ChunkConfig, files: ModelFiles) -> dict[str, Any]:
    if chunk.by == "none":  # the other keys have no effect
        return {"by": "none", "title_prefix": chunk.title_prefix}
    return chunk.model_dump() | {"max_tokens": chunk.max_tokens or files.max_length}


def _flatten(parts: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in parts.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
