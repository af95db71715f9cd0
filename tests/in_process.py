"""Runs without a cluster: the same reader, encoder, plan and commit, one slice after the other.

For tests of what a run decides: on Ray each run starts an actor, which loads torch anew; many would
take minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from pipelines import run as module
from pipelines.encode_slices import SliceEncoder
from pipelines.known_documents import KnownDocuments
from pipelines.known_on_ray import gather
from pipelines.layout import new_nonce
from pipelines.plan import unit_of
from pipelines.read_slices import read_slices


@dataclass
class Held:
    """Known documents in this process."""

    documents: KnownDocuments

    def get(self) -> KnownDocuments:
        return self.documents


def encode_here(config, request, run, todo, records, progress, known=None) -> None:
    run_id, session = run.plan.run_id, new_nonce()
    encoder = SliceEncoder(config, run_id, request.space_fingerprint, session)
    for number in range(todo.num_rows):
        assert unit_of(todo.slice(number, 1).to_pylist()[0]).wanted
        rows = read_slices(todo.slice(number, 1), config, run_id, session, known)
        for row in rows:
            receipt = encoder(row)
            done = module.Done.model_validate_json(receipt["done"][0].as_py())
            records.add(done)
            progress.update(done)


def without_ray(monkeypatch: Any) -> None:
    """Let runs of this test stay in this process."""
    torch.set_num_threads(1)  # tiny batches: threads would wait for each other
    monkeypatch.setattr(module, "ray_session", lambda *_, **__: nullcontext())
    monkeypatch.setattr(module, "refuse_local_index", lambda _: None)
    monkeypatch.setattr(module, "encode_units", encode_here)
    monkeypatch.setattr(
        module,
        "put_known",
        lambda index, numbering, _: Held(
            KnownDocuments([gather(index, numbering)], index.part_paths)
        ),
    )


@contextmanager
def ray_left_out() -> Iterator[None]:
    """The same as a context, for what is no test: fixtures that share an index."""
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        yield
