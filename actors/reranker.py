"""Score pairs of a query and a passage with a reranker.

    reranker = load_reranker(RerankerConfig(name="BAAI/bge-reranker-v2-m3"))
    reranker.score([("what is ray", "Ray is a distributed engine.")])     # float32, shape [1]
    reranker.score(pairs, normalize=True)                                 # values from 0 to 1

Pairs are packed without padding: a hundred passages of one query take a few forward passes of
about equal numbers of tokens. Each distinct query is tokenised once per call. Shape suffixes: N
pairs, L layers that score, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from actors.config import ComputeDtype, RerankerConfig, RerankerKind
from actors.errors import EncodeError, ModelError
from actors.models.reranker_files import RerankerFiles, resolve_reranker
from actors.network.backbone import TORCH_DTYPES, resolve_device, resolve_dtype
from actors.network.batch_runner import BatchRunner
from actors.network.micro_batches import TokenRows
from actors.network.packing import pack
from actors.network.pair_scores import PairModel, Spans, encoder_scorer, layers_scorer, llm_scorer
from actors.tokens.pair_tokens import PairShape, PairTokens
from actors.tokens.pairs import Pair, PairTokenizer, PromptedPairs, load_pair_tokenizer

__all__ = ["Reranker", "RerankerConfig", "RerankerInfo", "load_reranker", "logistic"]


@dataclass(frozen=True, kw_only=True)
class RerankerInfo:
    """Properties of a loaded reranker."""

    name: str
    revision: str | None
    kind: RerankerKind
    max_length: int
    query_max_length: int
    cutoff_layers: tuple[int, ...] | None
    dtype: ComputeDtype
    device: str


class Reranker:
    """A loaded reranker; use `load_reranker` to create one. Threads may share it."""

    def __init__(
        self,
        *,
        info: RerankerInfo,
        pairs: PairTokenizer,
        scorer: PairModel,
        first_position: int,
        too_long: str,
        max_batch_tokens: int | None,
    ) -> None:
        self.info = info
        """Properties of the reranker, such as `kind`, `max_length` and `cutoff_layers`."""
        self._pairs, self._scorer = pairs, scorer
        self._device = torch.device(info.device)
        self._first_position = first_position
        self._refuses = too_long == "refuse"
        self._batches = BatchRunner(self._device, max_batch_tokens)

    def score(self, pairs: Sequence[Pair], *, normalize: bool = False) -> np.ndarray:
        """Return the score of each (query, passage) pair in input order; higher is more relevant.

        The result is float32 [N], or [N, L] if `cutoff_layers` names L > 1 layers. Scores are
        logits; `normalize` maps them into (0, 1) with `logistic`, as FlagEmbedding does.

        Raises:
            EncodeError: an item is not a pair of texts, a pair is too long and `too_long` is
                "refuse", or a score is not finite or cannot be computed.
            torch.AcceleratorError: the device failed permanently.
        """
        tokens = self.tokenize(pairs)
        if self._refuses and tokens.truncated.any():
            row = int(np.flatnonzero(tokens.truncated)[0])
            raise EncodeError(
                f"pair {row}: expected at most {self.info.max_length} tokens, found more."
            )
        scores_NL, failures = self.score_tokens(tokens)
        for row, reason in failures.items():
            raise EncodeError(f"pair {row} cannot be scored: {reason}.")
        if normalize:
            scores_NL = logistic(scores_NL)
        return scores_NL[:, 0] if scores_NL.shape[1] == 1 else scores_NL

    @property
    def max_batch_tokens(self) -> int:
        """Token budget of a forward pass; lowered when the device runs out of memory."""
        return self._batches.max_batch_tokens

    @property
    def pair_shape(self) -> PairShape:
        """Token types and tail length that all pairs of this reranker share."""
        return self._pairs.shape

    def tokenize(self, pairs: Sequence[Pair], *, keep_end: bool = False) -> PairTokens:
        """Return the token ids of N pairs, and which pairs were truncated.

        `keep_end`: truncate a text that is too long at its beginning instead of its end.

        Raises:
            EncodeError: an item is not a pair of texts.
        """
        try:
            if any(isinstance(pair, str) for pair in pairs):
                raise TypeError  # a str of two letters would unpack as a pair
            return self._pairs.tokenize(pairs, keep_end=keep_end)
        except (TypeError, ValueError):
            _refuse_what_is_no_pair(pairs)
            raise

    @torch.inference_mode()
    def score_tokens(self, tokens: PairTokens) -> tuple[np.ndarray, dict[int, str]]:
        """Return scores float32 [N, L], and {row: reason} for each row without a score (NaN).

        Raises:
            torch.AcceleratorError: the device failed permanently.
        """
        lengths = tokens.lengths
        layers = len(self.info.cutoff_layers or (0,))
        scores_NL = np.full((len(lengths), layers), np.nan, dtype=np.float32)
        found: list[tuple[np.ndarray, torch.Tensor]] = []

        def compute(rows: np.ndarray) -> None:
            places = TokenRows.of(tokens.offsets, rows)
            packed = pack(
                tokens.values[places.places_T],
                places.cu_seqlens,
                first_position=self._first_position,
                device=self._device,
                token_types=tokens.types[places.places_T],
            )
            spans = Spans(tokens.passage_starts[rows], tokens.tail)
            found.append((rows, self._scorer(packed, spans)))

        failures = self._batches.run(lengths, compute)
        for rows, scores in found:  # copy last: the device computes while the next rows are packed
            scores_NL[rows] = scores.float().cpu().numpy()
        for row in np.flatnonzero(~np.isfinite(scores_NL).all(axis=1)).tolist():
            failures.setdefault(row, "NaN or Inf in its score")
        return scores_NL, failures


def _refuse_what_is_no_pair(pairs: Sequence[object]) -> None:
    for row, pair in enumerate(pairs):
        texts = list(pair) if isinstance(pair, Sequence) and not isinstance(pair, str) else [pair]
        kinds = [type(text).__name__ for text in texts]
        if kinds != ["str", "str"]:
            found = ", ".join(kinds) or "nothing"
            raise EncodeError(
                f"pair {row}: expected a query and a passage, found {found}.",
                "Pass a single pair as [(query, passage)].",
            )
        try:
            "".join(map(str, texts)).encode()
        except UnicodeEncodeError:
            raise EncodeError(f"pair {row}: expected Unicode, found a lone surrogate.") from None


def logistic(scores: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-score)) for each score; same shape and dtype, values from 0 to 1."""
    with np.errstate(over="ignore"):  # exp overflows below -88, where 0 is the right result
        normalized: np.ndarray = 1 / (1 + np.exp(-scores))
    return normalized


def load_reranker(config: RerankerConfig) -> Reranker:
    """Load a reranker onto `config.device`.

    Raises:
        ModelError: the model is not found or is an embedder, a weight is missing, the device does
            not exist, or `config` has an option or layer that this reranker does not support.
    """
    files = resolve_reranker(config)
    device = resolve_device(config.device, "reranker.device")
    dtype = _dtype(config, files, device)
    pairs = load_pair_tokenizer(files, config)
    try:
        scorer = _scorer(files, config, pairs, TORCH_DTYPES[dtype], device)
    except KeyError as error:
        raise ModelError(
            f"{files.folder / 'config.json'}: expected key {error} for a reranker of kind "
            f"{files.kind}, found none.",
            "Download the model folder again.",
        ) from error
    assert config.query_max_length is not None
    return Reranker(
        info=RerankerInfo(
            name=config.name,
            revision=config.revision,
            kind=files.kind,
            max_length=config.max_length,
            query_max_length=config.query_max_length,
            cutoff_layers=config.cutoff_layers,
            dtype=dtype,
            device=str(device),
        ),
        pairs=pairs,
        scorer=scorer,
        first_position=files.family.first_position(files.config) if files.family else 0,
        too_long=config.too_long,
        max_batch_tokens=config.max_batch_tokens,
    )


def _dtype(config: RerankerConfig, files: RerankerFiles, device: torch.device) -> ComputeDtype:
    dtype = resolve_dtype(config.dtype, device)
    is_gemma2 = files.kind == "lightweight" or files.config.get("model_type") == "gemma2"
    if config.dtype == "auto" and dtype == "float16" and is_gemma2:
        return "bfloat16"  # Gemma 2's hidden states overflow float16
    return dtype


def _scorer(
    files: RerankerFiles,
    config: RerankerConfig,
    pairs: PairTokenizer,
    dtype: torch.dtype,
    device: torch.device,
) -> PairModel:
    if files.kind == "encoder":
        return encoder_scorer(files, dtype, device)
    if files.kind == "llm":
        assert isinstance(pairs, PromptedPairs), "an LLM reranker has a prompt"
        return llm_scorer(files, pairs.first_id("Yes"), dtype, device)
    return layers_scorer(files, config, dtype, device)
