"""Load the tokenizer of a model folder and find its special tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, processors

from actors.errors import ModelError
from actors.models.files import read_json

# Special tokens without lexical meaning: FlagEmbedding's list and BERT's [SEP], which corresponds
# to eos in XLM-R.
_NON_LEXICAL = ("cls_token", "sep_token", "eos_token", "pad_token", "unk_token")


def non_lexical_ids(folder: Path) -> frozenset[int]:
    """Return the ids that never enter a sparse vector: cls, sep, eos, pad and unk (not mask).

    Their names come from special_tokens_map.json and tokenizer_config.json.
    """
    tokenizer, records = load_tokenizer(folder), token_records(folder)
    ids = (special_id(tokenizer, record, key) for record in records for key in _NON_LEXICAL)
    return frozenset(i for i in ids if i is not None)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load `folder`/tokenizer.json with the special tokens that its configuration requests.

    Padding and truncation are off; some published files pad to 128 tokens.

    Raises:
        ModelError: the file is missing or damaged.
    """
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no narrower type
        raise ModelError(
            f"{path}: expected a tokenizer, found: {error!s:.120}.", "Download the file again."
        ) from error
    _add_configured_tokens(tokenizer, folder)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _add_configured_tokens(tokenizer: Tokenizer, folder: Path) -> None:
    """Add the tokens of `add_bos_token` and `add_eos_token`, as transformers does.

    Llama-like tokenizers (Mistral, Gemma) may lack them in tokenizer.json. Without the eos token a
    decoder with last-token pooling returns plausible, wrong vectors.
    """
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.exists() else {}
    own = tokenizer.encode("a", add_special_tokens=False).ids
    ids = tokenizer.encode("a").ids
    first = next((i for i in range(len(ids)) if ids[i : i + len(own)] == own), 0)
    before, after = ids[:first], ids[first + len(own) :]

    def missing(side: str, there: list[int]) -> list[int]:
        token_id = special_id(tokenizer, config, f"{side}_token")
        wanted = config.get(f"add_{side}_token") is True
        return [token_id] if wanted and token_id is not None and token_id not in there else []

    bos, eos = missing("bos", before[:1]), missing("eos", after[-1:])
    if bos or eos:
        before, after = [*bos, *before], [*after, *eos]
        names = {i: str(tokenizer.id_to_token(i)) for i in (*before, *after)}
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*(names[i] for i in before), "$A", *(names[i] for i in after)],
            special_tokens=[(name, i) for i, name in names.items()],
        )


def token_records(folder: Path) -> Iterator[dict[str, object]]:
    """Yield special_tokens_map.json and tokenizer_config.json, if they exist."""
    for filename in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / filename).exists():
            yield read_json(folder / filename)


def special_id(tokenizer: Tokenizer, record: dict[str, object], key: str) -> int | None:
    """Return the id of the special token that `record` names under `key`; None if it has none."""
    token = record.get(key)
    if isinstance(token, dict):
        token = token.get("content")
    return tokenizer.token_to_id(token) if isinstance(token, str) else None
