"""Create a tiny M3 model with random weights in the real file formats, for tests and debugging.

It has an XLM-R backbone, both heads and a tokenizer, and is loaded by the same code as BAAI/bge-m3.
Its vectors have no meaning. The weights are seeded and equal on every machine.
"""

from __future__ import annotations

import json
import shutil
import string
import tempfile
from pathlib import Path

from actors.models.cache import cache_home

HIDDEN = 64
_VERSION = "1"  # part of the folder's name: increase it when the files change
_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def ensure_tiny_m3(cache: Path | None = None) -> Path:
    """Return the model's folder, creating it atomically at the first use."""
    cache = cache or cache_home()
    folder = cache / f"tiny-m3-{_VERSION}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".tiny-m3-", dir=cache))
    try:
        _write(staging)
        staging.chmod(0o755)  # mkdtemp sets 0700, which excludes other users
        try:
            staging.rename(folder)
        except OSError:
            if not folder.exists():  # otherwise another process has written the same files
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _write(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import XLMRobertaConfig, XLMRobertaModel

    vocabulary = _vocabulary()
    config = XLMRobertaConfig(
        vocab_size=len(vocabulary) + 1,
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * HIDDEN,
        max_position_embeddings=514,
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        architectures=["XLMRobertaModel"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = XLMRobertaModel(config, add_pooling_layer=False)
        sparse, colbert = torch.nn.Linear(HIDDEN, 1), torch.nn.Linear(HIDDEN, HIDDEN)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    torch.save(sparse.state_dict(), folder / "sparse_linear.pt")
    torch.save(colbert.state_dict(), folder / "colbert_linear.pt")
    config.save_pretrained(folder)
    _write_tokenizer(folder, vocabulary)


def _vocabulary() -> list[tuple[str, float]]:
    """Return special tokens, single characters and letter pairs, with and without word start."""
    letters = string.ascii_letters + string.digits
    singles = [*letters, *string.punctuation, "▁", *(f"▁{c}" for c in letters)]
    lower = string.ascii_lowercase
    pairs = [a + b for a in lower for b in lower]
    pairs += [f"▁{a}{b}" for a in lower + string.ascii_uppercase for b in lower]
    scored = [(piece, -6.0) for piece in singles] + [(piece, -8.0) for piece in pairs]
    return [(token, 0.0) for token in _SPECIAL] + scored


def _write_tokenizer(folder: Path, vocabulary: list[tuple[str, float]]) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=_SPECIAL.index("<unk>")))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.add_special_tokens([*_SPECIAL, "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=1))
    settings = names | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
