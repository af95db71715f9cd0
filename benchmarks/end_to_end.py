"""Encodes a corpus with embed_corpus, and the same token blocks with the encoder alone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks import bare
from benchmarks.reindex import Corpus
from benchmarks.wide_model import make_wide_model
from pipelines.config import RunConfig, load_config
from pipelines.embed_corpus import embed_corpus
from pipelines.plan.plan import read_done
from pipelines.reports.run_numbers import utilisation
from pipelines.store import open_store

_ROOT = Path(__file__).parent.parent

Row = dict[str, Any]


class Bench:
    """A corpus, its token blocks, and the means to encode either."""

    def __init__(self, folder: Path, articles: Path, passages: int, alone: Executor) -> None:
        self._folder, self._alone = folder, alone
        self._corpus, self._one = folder / "corpus", folder / "one"
        self._one.mkdir(parents=True)
        table = pq.read_table(articles, columns=["id", "url", "title", "text"])
        pq.write_table(table, self._one / "one.parquet")
        of_all = sum(
            piece.passages.num_rows for piece in bare.slices_of(self._config([], one=True))
        )
        pq.write_table(table.slice(0, 1), self._one / "one.parquet")
        documents = max(round(passages / of_all * table.num_rows), 20)
        Corpus(self._corpus, articles, documents)
        self.config = self._config([])
        self._blocks = folder / "blocks.arrow"
        self.facts = bare.tokenise(self.config, self._blocks)
        self.dtype = ""
        """The compute type of the last run."""
        self._wide = make_wide_model(folder / "wide", self.config.model.name)

    @property
    def tokens(self) -> int:
        """Return the number of tokens of all passages."""
        return int(self.facts["tokens"])

    def encode_alone(self, overrides: Sequence[str] = (), blocks: int | None = None) -> float:
        """Return the seconds of the bare encoder; `blocks`: only the first ones, to warm up."""
        config = self._config(overrides).with_absolute_paths().encoder
        return self._alone.submit(bare.encode, config, self._blocks, blocks).result()

    def end_to_end(self, overrides: Sequence[str] = (), *, one: bool = False) -> Row:
        """Run embed_corpus once, on the whole corpus or on one document."""
        config = self._config(overrides, one=one)
        shutil.rmtree(config.index.uri, ignore_errors=True)
        began = time.perf_counter()
        with bare.watched_memory() as memory:
            manifest = embed_corpus(config)
        wall = time.perf_counter() - began
        done = read_done(open_store(config.index.uri), manifest.run_id)
        self.dtype = done[0].encoder.dtype
        times = [record.times for record in done if record.times]
        return {
            "wall": wall,
            "span": max(t.ended for t in times) - min(t.began for t in times),
            "slices": len(done),
            "tokens": sum(record.encoded_tokens for record in done),
            "encoder_busy": utilisation(done),
            "encode": sum(t.encode for t in times),
            "write": sum(t.write for t in times),
            "upload": sum(t.upload for t in times),
            "bytes_written": sum(record.part.bytes for record in done if record.part),
            "encoder_memory": memory.encoder,
            "reader_memory": memory.reader,
        }

    def simulate(self, speed: float, overrides: Sequence[str]) -> Row:
        """Run once with a simulated encoder of `speed` tokens per second."""
        wide = [f"model.name={self._wide}", f"model.heads={self._wide}"]
        speed_of = f"model.simulated_tokens_per_second={speed}"
        row = self.end_to_end([*wide, speed_of, *overrides])
        return row | {"device_busy": row["tokens"] / speed / row["span"]}

    def _config(self, overrides: Sequence[str], *, one: bool = False) -> RunConfig:
        source = self._one if one else self._corpus
        places = [f"source.uri={source}", f"index.uri={self._folder / 'index'}"]
        # Slices of the default size: a file each here, and on a GPU up to 131,072 tokens.
        places.append("slice.documents=1000")
        return load_config(_ROOT / "conf/quickstart.yaml", [*places, *overrides])
