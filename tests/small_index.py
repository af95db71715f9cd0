"""Indexes with a history, made in this process.

history = History(folder)
history.write("a", {"d1": "some text"})
history.run()
"""

from __future__ import annotations

import copy
import gzip
import json
from functools import cache
from pathlib import Path

import pyarrow as pa
import torch
from conftest import config_for

from actors.encoded import EncodedBatch
from actors.encoder import load_encoder
from pipelines.index import Index, open_index
from pipelines.index.generations import live_generation
from pipelines.index.records import Manifest
from pipelines.run.context import RunContext
from pipelines.run.in_process import InProcessEngine
from pipelines.run.runner import run_next
from pipelines.run.tasks import Task, next_embed_task, next_reindex_task
from pipelines.store import open_store
from pipelines.terminal.cli import silent
from pipelines.terminal.progress import Progress

POISON = "qqqq"
EXACT = {"name": "builtin:tiny-m3", "max_length": 128, "dtype": "float32", "device": "cpu"}

_load = cache(load_encoder)


class History:
    """A folder of files of documents, and an index of it."""

    def __init__(self, folder: Path, **sections) -> None:
        torch.set_num_threads(1)
        self.docs = folder / "docs"
        self.docs.mkdir(parents=True)
        sections["index"] = {"uri": str(folder / "index")} | sections.get("index", {})
        sections = {
            "model": EXACT,
            "slice": {"documents": 3},
            "max_reject_fraction": 1.0,
            "allow_unreadable_units": True,
            "gate": {"max_deleted": 1.0, "max_changed": 1.0},
        } | sections
        self.config = config_for(self.docs, **sections).with_absolute_paths()
        self.store = open_store(self.config.index.uri, self.config.index.storage_options)
        self._written = 0
        self.texts: dict[str, dict[str, str]] = {}

    def with_index(self, uri: Path | str) -> History:
        """The same documents with another index."""
        other = copy.copy(self)
        index = self.config.index.model_copy(update={"uri": str(uri)})
        other.config = self.config.model_copy(update={"index": index})
        other.store = open_store(str(uri))
        return other

    def write(self, name: str, texts: dict[str, str]) -> None:
        """A file of documents, over what it was."""
        self.texts[name] = dict(texts)
        # Sizes differ, or the clock must have ticked: a file has to be seen as another one.
        self._written += 1
        rows = [
            {"id": doc_id, "text": text, "title": f"of {doc_id}", "url": f"u/{doc_id}"}
            for doc_id, text in texts.items()
        ]
        lines = "".join(f"{json.dumps(row)}\n" for row in rows) + "\n" * self._written
        (self.docs / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))

    def damage(self, name: str) -> None:
        """Half of the file is gone."""
        path = self.docs / f"{name}.jsonl.gz"
        path.write_bytes(path.read_bytes()[:-12])

    def remove(self, name: str) -> None:
        (self.docs / f"{name}.jsonl.gz").unlink()

    def context(self, *, poisoned: bool = False, publishes: bool = True) -> RunContext:
        encoder = _load(self.config.encoder)
        engine = InProcessEngine(_Poisoned(encoder) if poisoned else encoder)
        return RunContext.of(self.config, Progress(silent()), publishes=publishes, engine=engine)

    def task(self, kind: str = "reindex") -> Task | Manifest:
        """What there is to do, or the live manifest."""
        return self._next_task(self.context(), kind)

    def _next_task(self, context: RunContext, kind: str) -> Task | Manifest:
        if kind == "reindex" and live_generation(self.store) is not None:
            return next_reindex_task(context)
        return next_embed_task(context, fresh=False, replay=kind == "replay")

    def run(self, kind: str = "reindex", *, poisoned: bool = False, publishes: bool = True):
        """Embed, or bring up to date, or replay; the manifest of the newest state.

        `poisoned`: documents with POISON cannot be encoded this time.
        """
        context = self.context(poisoned=poisoned, publishes=publishes)
        return run_next(
            context, lambda: self._next_task(context, kind), context.progress.nothing_to_do
        )

    def index_of(self, generation: int) -> Index:
        return open_index(self.config.index.uri, generation=generation)

    @property
    def index(self) -> Index:
        return open_index(self.config.index.uri)


class _Poisoned:
    """An encoder to which a passage with POISON has no finite vector."""

    def __init__(self, encoder) -> None:
        self._encoder = encoder
        tokenize = encoder.passage_tokenizer.tokenize
        plain = set(tokenize(["some words and more"]).values.tolist())
        self._tokens = set(tokenize([POISON]).values.tolist()) - plain

    def __getattr__(self, name: str):
        return getattr(self._encoder, name)

    def stream(self, tokens):
        for row in range(len(tokens)):
            if self._tokens & set(tokens[row].as_py()):
                yield EncodedBatch.failed(row, "poison", self._encoder.empty())
            else:
                yield from (b.moved(row) for b in self._encoder.stream(tokens.slice(row, 1)))


def view(index: Index) -> pa.Table:
    """The live rows, in one order."""
    return index.to_table().sort_by("passage_id").combine_chunks()
