"""The registry: one record for each published model and reranker.

Contains the 47 models of FlagEmbedding 1.4.2 (inference/embedder/model_mapping.py) with the texts
of their instructions, which FlagEmbedding leaves to the user, BAAI/llm-embedder, and the rerankers
of inference/reranker/model_mapping.py. The facts come from model cards and config.json files and
are checked against the checkpoint. Reads no files and imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial

from actors.config import ComputeDtype, Output, Pooling, RerankerKind


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """One published model and its recommended use for retrieval.

    A format has two placeholders, instruction and text. It is not used without an instruction.
    """

    name: str
    """Hub id (owner/name)."""
    family: str
    """model_type in config.json: a name of transformers or of the checkpoint's own code ("new")."""
    pooling: Pooling
    dim: int
    """Dimension of dense vectors (hidden_size)."""
    max_length: int
    """Longest text in tokens, special tokens included: the model card's limit or usual length."""
    outputs: tuple[Output, ...] = ("dense",)
    vocab_size: int | None = None
    """vocab_size in config.json; None if unknown."""
    query_instruction: str = ""
    """Instruction of the model card for retrieval, without the format."""
    query_format: str = "{}{}"
    passage_instruction: str = ""
    passage_format: str = "{}{}"
    query_suffix: str = ""
    """Text after the formatted query."""
    tasks: Mapping[str, tuple[str, str]] = field(default_factory=dict, hash=False)
    """Query and passage instruction by task; these replace the two instructions above."""
    dtype: ComputeDtype = "float16"
    """Compute type on a GPU."""
    remote_code: bool = False
    """Whether the model needs the Python code of its checkpoint."""
    license: str = ""
    """License, if it restricts use."""
    note: str = ""
    """Hint for the user."""


@dataclass(frozen=True, kw_only=True)
class RerankerRecord:
    """One published reranker."""

    name: str
    """Hub id (owner/name)."""
    kind: RerankerKind = "encoder"
    remote_code: bool = False
    """Whether the model needs the Python code of its checkpoint."""


def record_of(name: str) -> KnownModel | None:
    """Return the record for a hub id, a bare name or a path; None for an unknown model.

    Only the last part of the name counts, as in FlagEmbedding. A local copy and its `checkpoint-*`
    folders therefore have the record of the model they are named after.
    """
    return _MODEL_BY_NAME.get(_last_part(name))


def reranker_record(name: str) -> RerankerRecord | None:
    """Return the record of a reranker, found as in `record_of`."""
    return _RERANKER_BY_NAME.get(_last_part(name))


def _last_part(name: str) -> str:
    parts = [part for part in name.split("/") if part]
    if len(parts) > 1 and parts[-1].startswith("checkpoint-"):
        parts.pop()
    return parts[-1] if parts else ""


def nearest_names(name: str, published: Iterable[str] | None = None) -> list[str]:
    """Return up to three hub ids similar to `name`, the nearest first.

    `published`: the hub ids to search; those of the embedding models when not given.
    """
    published = published or [record.name for record in MODELS]
    known = {each.rpartition("/")[2].lower(): each for each in published}
    wanted = name.rstrip("/").rpartition("/")[2].lower()
    return [known[near] for near in get_close_matches(wanted, known)]


_BGE_EN = "Represent this sentence for searching relevant passages: "
_BGE_ZH = "为这个句子生成表示以用于检索相关文章："
_WEB = "Given a web search query, retrieve relevant passages that answer the query"

_LLM_EMBEDDER_TASKS = {
    "qa": (
        "Represent this query for retrieving relevant documents: ",
        "Represent this document for retrieval: ",
    ),
    "icl": (
        "Convert this example into vector to look for useful examples: ",
        "Convert this example into vector for retrieval: ",
    ),
    "chat": (
        "Embed this dialogue to find useful historical dialogues: ",
        "Embed this historical dialogue for retrieval: ",
    ),
    "lrlm": (
        "Embed this text chunk for finding useful historical chunks: ",
        "Embed this historical text chunk for retrieval: ",
    ),
    "tool": (
        "Transform this user request for fetching helpful tool descriptions: ",
        "Transform this tool description for retrieval: ",
    ),
    "convsearch": (
        "Encode this query and context for searching relevant passages: ",
        "Encode this passage for retrieval: ",
    ),
}


def _encoder(
    name: str,
    family: str,
    pooling: Pooling,
    dim: int,
    vocab_size: int,
    query_instruction: str = "",
    passage_instruction: str = "",
) -> KnownModel:
    """Return the record of an encoder with 512 tokens and instructions as prefixes."""
    return KnownModel(
        name=name,
        family=family,
        pooling=pooling,
        dim=dim,
        max_length=512,
        vocab_size=vocab_size,
        query_instruction=query_instruction,
        passage_instruction=passage_instruction,
    )


_decoder = partial(KnownModel, pooling="last_token")
_long_gte = partial(KnownModel, family="new", pooling="cls", max_length=8192, remote_code=True)
_gte_qwen = partial(
    _decoder,
    family="qwen2",
    max_length=32768,
    query_instruction=_WEB,
    query_format="Instruct: {}\nQuery: {}",
    remote_code=True,
    note="its own code uses bidirectional attention; qwen2 of transformers is causal",
)
_qwen3 = partial(
    _decoder,
    family="qwen3",
    max_length=32768,
    query_instruction=_WEB,
    query_format="Instruct: {}\nQuery:{}",  # no space after the colon
)
_mistral = partial(  # E5-Mistral and its descendants
    _decoder,
    family="mistral",
    dim=4096,
    max_length=4096,
    vocab_size=32000,
    query_instruction=_WEB,
    query_format="Instruct: {}\nQuery: {}",
)

MODELS: tuple[KnownModel, ...] = (
    # Encoders: name, family, pooling, dim, vocab_size, query instruction, passage instruction
    _encoder("BAAI/bge-large-en-v1.5", "bert", "cls", 1024, 30522, _BGE_EN),
    _encoder("BAAI/bge-base-en-v1.5", "bert", "cls", 768, 30522, _BGE_EN),
    _encoder("BAAI/bge-small-en-v1.5", "bert", "cls", 384, 30522, _BGE_EN),
    _encoder("BAAI/bge-large-zh-v1.5", "bert", "cls", 1024, 21128, _BGE_ZH),
    _encoder("BAAI/bge-base-zh-v1.5", "bert", "cls", 768, 21128, _BGE_ZH),
    _encoder("BAAI/bge-small-zh-v1.5", "bert", "cls", 512, 21128, _BGE_ZH),
    _encoder("BAAI/bge-large-en", "bert", "cls", 1024, 30522, _BGE_EN),
    _encoder("BAAI/bge-base-en", "bert", "cls", 768, 30522, _BGE_EN),
    _encoder("BAAI/bge-small-en", "bert", "cls", 384, 30522, _BGE_EN),
    _encoder("BAAI/bge-large-zh", "bert", "cls", 1024, 21128, _BGE_ZH),
    _encoder("BAAI/bge-base-zh", "bert", "cls", 768, 21128, _BGE_ZH),
    _encoder("BAAI/bge-small-zh", "bert", "cls", 512, 21128, _BGE_ZH),
    KnownModel(
        name="BAAI/bge-m3",
        family="xlm-roberta",
        pooling="cls",
        dim=1024,
        max_length=8192,
        outputs=("dense", "sparse", "colbert"),
        vocab_size=250002,
    ),
    KnownModel(
        name="BAAI/llm-embedder",
        family="bert",
        pooling="cls",
        dim=768,
        max_length=512,
        vocab_size=30522,
        query_instruction=_LLM_EMBEDDER_TASKS["qa"][0],
        passage_instruction=_LLM_EMBEDDER_TASKS["qa"][1],
        tasks=_LLM_EMBEDDER_TASKS,
        note="instruct queries and passages by task; the default is qa",
    ),
    # E5: every text needs one of the two prefixes, according to the model card
    _encoder("intfloat/e5-large-v2", "bert", "mean", 1024, 30522, "query: ", "passage: "),
    _encoder("intfloat/e5-base-v2", "bert", "mean", 768, 30522, "query: ", "passage: "),
    _encoder("intfloat/e5-small-v2", "bert", "mean", 384, 30522, "query: ", "passage: "),
    _encoder("intfloat/e5-large", "bert", "mean", 1024, 30522, "query: ", "passage: "),
    _encoder("intfloat/e5-base", "bert", "mean", 768, 30522, "query: ", "passage: "),
    _encoder("intfloat/e5-small", "bert", "mean", 384, 30522, "query: ", "passage: "),
    _encoder(
        "intfloat/multilingual-e5-large",
        "xlm-roberta",
        "mean",
        1024,
        250002,
        "query: ",
        "passage: ",
    ),
    _encoder(
        "intfloat/multilingual-e5-base", "xlm-roberta", "mean", 768, 250002, "query: ", "passage: "
    ),
    # BERT's layers under XLM-R's tokenizer
    _encoder("intfloat/multilingual-e5-small", "bert", "mean", 384, 250037, "query: ", "passage: "),
    KnownModel(
        name="intfloat/multilingual-e5-large-instruct",
        family="xlm-roberta",
        pooling="mean",
        dim=1024,
        max_length=512,
        vocab_size=250002,
        query_instruction=_WEB,
        query_format="Instruct: {}\nQuery: {}",
    ),
    # GTE and BCE: no instructions
    _encoder("thenlper/gte-large", "bert", "mean", 1024, 30522),
    _encoder("thenlper/gte-base", "bert", "mean", 768, 30522),
    _encoder("thenlper/gte-small", "bert", "mean", 384, 30522),
    _encoder("thenlper/gte-large-zh", "bert", "cls", 1024, 21128),
    _encoder("thenlper/gte-base-zh", "bert", "cls", 768, 21128),
    _encoder("thenlper/gte-small-zh", "bert", "cls", 512, 21128),
    _long_gte(
        name="Alibaba-NLP/gte-multilingual-base",
        dim=768,
        vocab_size=250048,
        note="alibaba-nlp-community/gte-multilingual-base has these weights for "
        "the gte class of transformers",
    ),
    _long_gte(name="Alibaba-NLP/gte-large-en-v1.5", dim=1024, vocab_size=30528),
    _long_gte(name="Alibaba-NLP/gte-base-en-v1.5", dim=768, vocab_size=30528),
    _encoder("maidalun1020/bce-embedding-base_v1", "xlm-roberta", "cls", 768, 250002),
    # Decoders
    _decoder(
        name="BAAI/bge-en-icl",
        family="mistral",
        dim=4096,
        max_length=512,
        vocab_size=32003,
        query_instruction=f"{_WEB}.",
        query_format="<instruct>{}\n<query>{}",
        query_suffix="\n<response>",
        note="in-context examples go before the query; has positions for 32,768 tokens",
    ),
    _decoder(
        name="BAAI/bge-multilingual-gemma2",
        family="gemma2",
        dim=3584,
        max_length=4096,
        vocab_size=256002,
        query_instruction=f"{_WEB}.",
        query_format="<instruct>{}\n<query>{}",
        dtype="bfloat16",
        license="gemma",
        note="the model card uses float16, in which Gemma 2 is unstable; vLLM refuses float16",
    ),
    _decoder(
        name="BAAI/bge-code-v1",
        family="qwen2",
        dim=1536,
        max_length=4096,
        vocab_size=151667,
        query_instruction="Given a web search query, "
        "retrieve relevant code that can help answer the query.",
        query_format="<instruct>{}\n<query>{}",
        note="instruct queries by task: the model card lists 16; the default is that of CosQA",
    ),
    _decoder(
        name="BAAI/bge-reasoner-embed-qwen3-8b-0923",
        family="qwen3",
        dim=4096,
        max_length=8192,
        query_format="Instruct: {}\nQuery: {}",
        note="instruct queries by task, as in FlagEmbedding's evaluation/bright/prompts.py: "
        "'Given a Biology post, retrieve relevant passages that help answer the post.'",
    ),
    _qwen3(name="Qwen/Qwen3-Embedding-0.6B", dim=1024, vocab_size=151669),
    _qwen3(name="Qwen/Qwen3-Embedding-4B", dim=2560, vocab_size=151665),
    _qwen3(name="Qwen/Qwen3-Embedding-8B", dim=4096, vocab_size=151665),
    _mistral(name="intfloat/e5-mistral-7b-instruct"),
    _mistral(name="Salesforce/SFR-Embedding-2_R", license="cc-by-nc-4.0"),
    _mistral(name="Salesforce/SFR-Embedding-Mistral", license="cc-by-nc-4.0"),
    _mistral(
        name="Linq-AI-Research/Linq-Embed-Mistral",
        query_instruction="Given a question, retrieve Wikipedia passages that answer the question",
        dtype="bfloat16",
        license="cc-by-nc-4.0",
        note="a gated repository: accept its conditions on the hub first",
    ),
    _gte_qwen(
        name="Alibaba-NLP/gte-Qwen2-7B-instruct", dim=3584, vocab_size=151646, dtype="bfloat16"
    ),
    _gte_qwen(
        name="Alibaba-NLP/gte-Qwen2-1.5B-instruct", dim=1536, vocab_size=151646, dtype="float16"
    ),
    _gte_qwen(
        name="Alibaba-NLP/gte-Qwen1.5-7B-instruct", dim=4096, vocab_size=151936, dtype="float16"
    ),
)

RERANKERS = (
    RerankerRecord(name="BAAI/bge-reranker-base"),
    RerankerRecord(name="BAAI/bge-reranker-large"),
    RerankerRecord(name="BAAI/bge-reranker-v2-m3"),
    RerankerRecord(name="BAAI/bge-reranker-v2-gemma", kind="llm"),
    RerankerRecord(name="BAAI/bge-reranker-v2-minicpm-layerwise", kind="layerwise"),
    RerankerRecord(name="BAAI/bge-reranker-v2.5-gemma2-lightweight", kind="lightweight"),
    RerankerRecord(name="maidalun1020/bce-reranker-base_v1"),
    RerankerRecord(name="jinaai/jina-reranker-v1-turbo-en", remote_code=True),
    RerankerRecord(name="jinaai/jina-reranker-v2-base-multilingual", remote_code=True),
    RerankerRecord(name="Alibaba-NLP/gte-multilingual-reranker-base", remote_code=True),
)
DECODER_KINDS: Mapping[str, RerankerKind] = {
    "LayerWiseMiniCPMForCausalLM": "layerwise",
    "CostWiseGemmaForCausalLM": "lightweight",
}
"""Kind by architecture in config.json, for architectures that only rerankers use."""
CLASSIFIER = "ForSequenceClassification"
"""End of the architecture's name of other rerankers."""

_MODEL_BY_NAME = {record.name.rpartition("/")[2]: record for record in MODELS}
_RERANKER_BY_NAME = {record.name.rpartition("/")[2]: record for record in RERANKERS}
