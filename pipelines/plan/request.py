"""What a run is asked, in comparable form, and its id.

The id is a hash of the request, so that the same command after a crash finds its own plan and goes
on with it.
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
    """Everything that decides the result of a run, in comparable form."""

    parts: dict[str, Any]
    """Plain data; what two requests differ in is named by its dotted path."""

    @staticmethod
    def of(config: RunConfig, files: ModelFiles) -> Request:
        """The request a configuration makes of a resolved model."""
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
        """As `of`, for scores of pairs."""
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
        """Equal where vectors may be compared."""
        return fingerprint(self.parts["model"])

    @property
    def index_fingerprint(self) -> str:
        """Equal where two generations may be one index."""
        parts = {k: v for k, v in self.parts.items() if k not in ("source", "slice")}
        return fingerprint(parts | {"columns": self.parts["source"]["columns"]})

    def run_id(self, **occasion: int | str) -> str:
        """The id of the run this request makes; `occasion`: what makes it another one each time.

        Nothing for a first run. Starting over (--fresh) counts in what is published and the
        source's listing, so that a plan the source has outgrown blocks nothing; replaying rejects,
        the generation whose they are.
        """
        return fingerprint({"request": self.parts, "occasion": occasion})[:16]

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Dotted paths at which the other request's parts differ."""
        return differences(self.parts, other)


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Dotted paths at which two nested mappings differ."""
    ours, others = dict(_flatten(mine)), dict(_flatten(theirs))
    return sorted(key for key in ours | others if ours.get(key) != others.get(key))


def _common(config: AnyRunConfig) -> dict[str, Any]:
    """What decides the result of a run of any kind."""
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
    if chunk.by == "none":  # its other keys change nothing
        return {"by": "none", "title_prefix": chunk.title_prefix}
    return chunk.model_dump() | {"max_tokens": chunk.max_tokens or files.max_length}


def _flatten(parts: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in parts.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
