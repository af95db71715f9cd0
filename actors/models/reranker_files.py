"""Find the files of a reranker and determine its kind. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from actors.config import RerankerConfig, RerankerKind
from actors.errors import ModelError
from actors.models.families import DECODERS, ENCODERS, FAMILIES, Family
from actors.models.files import Checkpoint, check_number, check_tokenizer, read_json
from actors.models.location import RERANKER_KEY, locate
from actors.models.registry import (
    CLASSIFIER,
    DECODER_KINDS,
    RerankerRecord,
    record_of,
    reranker_record,
)


@dataclass(frozen=True, kw_only=True)
class RerankerFiles(Checkpoint):
    """The files of a reranker and its properties."""

    name: str
    kind: RerankerKind
    family: Family | None
    """None for architectures that only rerankers use."""


def resolve_reranker(config: RerankerConfig) -> RerankerFiles:
    """Find the files of `config.name` and determine the kind of reranker.

    Raises:
        ModelError: the model is not found, is an embedder or needs its own code without permission;
            or its kind does not support the architecture, an option or `max_length`.
    """
    if record_of(config.name) and not Path(config.name).expanduser().is_dir():
        raise _not_a_reranker(config.name, "an embedder's name")  # before the download
    folder = locate(config.name, config.revision, key=RERANKER_KEY)
    model = read_json(folder / "config.json")
    check_tokenizer(f"reranker {config.name!r}", folder)
    record = reranker_record(config.name)
    architecture = str((model.get("architectures") or [""])[0])
    kind: RerankerKind | None = DECODER_KINDS.get(architecture)
    if kind is None and architecture.endswith(CLASSIFIER):
        kind = "encoder"
    if kind is None and architecture.endswith("ForCausalLM") and not record_of(config.name):
        kind = "llm"
    if kind is None or (record and record.kind != kind):
        raise _not_a_reranker(
            config.name, f"{architecture or 'no architecture'} in config.json", record
        )
    remote = "auto_map" in model and (record is None or record.remote_code) and kind == "encoder"
    if remote and not config.trust_remote_code:
        raise ModelError(
            f"reranker {config.name!r}: needs the Python code of its repository, which only runs "
            "if the configuration allows it.",
            "Read that code, then set trust_remote_code=true (batches are padded: slower).",
        )
    families = {"encoder": ENCODERS, "llm": DECODERS}.get(kind)
    found = model.get("model_type")
    if families is not None and found not in families and not remote:
        raise ModelError(
            f"reranker {config.name!r}: expected an architecture among "
            f"{', '.join(sorted(families))} for kind {kind}, found {found!r} in config.json.",
            "Use a model with one of these architectures.",
        )
    _refuse_options(config, kind)
    family = FAMILIES.get(str(found))
    if family:
        check_number(folder, model, "max_position_embeddings")
    if family and config.max_length > family.usable_positions(model):
        raise ModelError(
            f"reranker.max_length: expected at most {family.usable_positions(model)} (the "
            f"positions of {config.name}), got {config.max_length}."
        )
    return RerankerFiles(
        name=config.name,
        folder=folder,
        config=model,
        remote_code=remote,
        kind=kind,
        family=family,
    )


def _not_a_reranker(name: str, found: str, record: RerankerRecord | None = None) -> ModelError:
    wanted = f"a reranker of kind {record.kind}" if record else "a reranker"
    return ModelError(
        f"reranker {name!r}: expected {wanted}, found {found}.",
        "An embedder computes vectors: set it as model.name." if not record else "",
    )


def _refuse_options(config: RerankerConfig, kind: RerankerKind) -> None:
    """Raise ModelError for options that this kind of reranker would ignore."""
    for key, kinds in (
        ("prompt", ("llm", "layerwise", "lightweight")),
        ("cutoff_layers", ("layerwise", "lightweight")),
        ("compress_layers", ("lightweight",)),
    ):
        if getattr(config, key) and kind not in kinds:
            raise ModelError(
                f"reranker.{key}: expected none for a reranker of kind {kind} ({config.name}), got "
                f"{getattr(config, key)!r}.",
                f"Remove it; only rerankers of kind {', '.join(kinds)} use it.",
            )
