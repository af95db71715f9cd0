"""A tiny random-weight M3 in the real file formats: XLM-R backbone, both heads, tokenizer.

For debugging a pipeline in seconds, tests and CI. Its vectors mean nothing; every file of it is
loaded by exactly the code that loads BAAI/bge-m3. Seeded: every machine writes the same weights.
"""

from __future__ import annotations

import json
import shutil
import string
import tempfile
from pathlib import Path

from actors.models.cache import cache_home

HIDDEN = 64
_VERSION = "1"  # part of the folder's name: raise it when anything written here changes
_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def ensure_tiny_m3(cache: Path | None = None) -> Path:
    """The model's folder, written on first use; atomic, so that several actors may race to it."""
    cache = cache or cache_home()
    folder = cache / f"tiny-m3-{_VERSION}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".tiny-m3-", dir=cache))
    try:
        _write(staging)
        staging.chmod(0o755)  # mkdtemp's 0700 would hide it from other users of the node
        try:
            staging.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was first, with the same bytes
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
    """Special tokens, then single characters and letter pairs, with or without a word start."""
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
