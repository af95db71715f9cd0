"""Indexes with a history, made in this process: what embed_corpus and reindex do, without Ray.

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
from actors.model_files import resolve_model
from pipelines import reindex_task, work
from pipelines.commit import commit
from pipelines.done_records import read_done
from pipelines.encode_slices import SliceEncoder
from pipelines.generations import committed_by, live_generation, publish, read_chain
from pipelines.index import Index, open_index
from pipelines.inventory import Numbering, inventory
from pipelines.known_documents import KnownDocuments
from pipelines.known_on_ray import gather
from pipelines.plan import plan_run, todo_table, unit_of
from pipelines.request import Request
from pipelines.slices import SliceReader
from pipelines.source import Source
from pipelines.storage import open_store
from pipelines.supersede import Comparison
from pipelines.tasks import Task, next_task_of

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

    def task(self, kind: str = "reindex"):
        """What there is to do, or the live manifest."""
        request = Request.of(self.config, resolve_model(self.config.encoder))
        source = Source(self.config.source)
        listing = source.list_files()
        if kind == "reindex" and live_generation(self.store) is not None:
            return request, listing, reindex_task.next_task_of(self.store, request, source, listing)
        return (
            request,
            listing,
            next_task_of(
                self.store, request, source, listing, fresh=False, replay=kind == "replay"
            ),
        )

    def run(self, kind: str = "reindex", *, poisoned: bool = False, publishes: bool = True):
        """Embed, or bring up to date, or replay; the manifest of the newest state.

        `poisoned`: documents with POISON cannot be encoded this time.
        """
        request, listing, task = self.task(kind)
        if not isinstance(task, Task):
            return task
        store = self.store
        if manifest := committed_by(store, task.run_id, task.parent or 0):
            return manifest
        run = plan_run(
            store,
            self.config,
            request,
            task.pin,
            listing.files,
            task.run_id,
            task.parent,
            task.kind,
        )
        parent = None if task.parent is None else Index(store, read_chain(store, task.parent))
        known, inherits = None, None
        if parent is not None:
            numbering = Numbering(run.units)
            known = KnownDocuments([gather(parent, numbering)], parent.part_paths)

            def inherits(done, lost):
                before = inventory(store, parent.info)
                return Comparison(parent, before, numbering, known).inherit(done, lost)

        self._encode(task, request, run, known, poisoned)
        manifest = commit(
            store,
            self.config,
            request,
            run,
            read_done(store, task.run_id),
            lambda: None,
            inherits,
        )
        if publishes:
            publish(store, manifest.generation, over=task.parent)
        return manifest

    def _encode(self, task, request, run, known, poisoned) -> None:
        load, work.load_encoder = work.load_encoder, _load
        try:
            encoder = SliceEncoder(self.config, task.run_id, request.space_fingerprint, "session")
        finally:
            work.load_encoder = load
        if poisoned:
            encoder._encoder = _Poisoned(encoder._encoder)
        reader = SliceReader(self.config)
        todo = todo_table(run.units, read_done(self.store, task.run_id))
        for row in todo.to_pylist():
            for start, stop in row["todo"]:
                for piece in reader.slices(unit_of(row), start, stop, known):
                    encoder.encode(piece)

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
