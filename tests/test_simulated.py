"""A simulated encoder takes the time it should, and gives what a real one would, but for values."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from actors.config import OUTPUTS, ModelConfig
from actors.encoder import load_encoder
from actors.errors import ModelError
from actors.fingerprint import fingerprint, space_parts
from actors.models.files import resolve_model
from actors.network.forward import Forward
from actors.simulated import SimulatedDevice, SimulatedEncoder, load_simulated
from pipelines.embed_corpus import embed_corpus
from pipelines.endpoint.config import parse_endpoint_config
from pipelines.endpoint.deployment import _load
from pipelines.estimate.speed import recall_speed, remember_speed
from pipelines.index import open_index

TOKENS = pa.array([[0, 5, 2], [0, 7, 8, 9, 2], [0, 2], *[[0, *range(5, 60), 2]] * 20])
TINY = ModelConfig(name="builtin:tiny-m3", outputs=OUTPUTS, device="cpu")


def simulated(**changes) -> ModelConfig:
    return dataclasses.replace(TINY, **({"simulated_tokens_per_second": 1e6} | changes))


class Clock:
    """Time that only passes in sleeps, each of which lasts a little too long."""

    def __init__(self, overshoot: float = 0.0) -> None:
        self.now, self._overshoot = 0.0, overshoot

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds + self._overshoot

    def encoder(self, speed: float, **changes) -> SimulatedEncoder:
        config, device = simulated(**changes), SimulatedDevice(speed, self, self.sleep)
        return SimulatedEncoder(config, resolve_model(config), device)


def test_stream_takes_as_long_as_its_tokens_at_that_speed_also_where_sleeps_last_too_long():
    tokens, clock = len(TOKENS.flatten()), Clock()
    list(clock.encoder(100.0).stream(TOKENS))
    assert clock.now == pytest.approx(tokens / 100)
    clock = Clock(overshoot=0.01)
    assert len(list(clock.encoder(1000.0, max_batch_tokens=57).stream(TOKENS))) > 20
    assert clock.now == pytest.approx(tokens / 1000, abs=0.02)  # they do not add up


def test_time_in_which_nobody_encodes_is_not_made_up_for():
    clock = Clock()
    for _ in clock.encoder(1000.0, max_batch_tokens=57).stream(TOKENS):
        clock.now += 1.0
    assert clock.now > 20 + len(TOKENS.flatten()) / 1000


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"outputs": ("dense",)},
        {"outputs": ("colbert", "sparse")},
        {"vector_dtype": "float32"},
        {"truncate_dim": 16},
    ],
)
def test_columns_have_the_types_and_sizes_of_the_real_encoder(changes):
    config = dataclasses.replace(TINY, **changes)
    real, made = load_encoder(config), load_simulated(simulated(**changes))
    assert made.empty().schema == real.empty().schema
    [theirs], [ours] = real.stream(TOKENS), made.stream(TOKENS)
    assert ours.columns.schema == theirs.columns.schema
    assert (ours.start, ours.stop, ours.failures) == (0, len(TOKENS), {})
    for name in set(config.outputs) - {"sparse"}:
        assert ours.columns[name].nbytes == theirs.columns[name].nbytes
    if "dense" in config.outputs:
        vectors = np.array(ours.columns["dense"].to_pylist())
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-2)
        assert len(np.unique(vectors, axis=0)) == len(vectors)
    if "sparse" in config.outputs:
        indices = ours.columns["sparse"].combine_chunks().field("indices").to_pylist()
        assert [len(row) for row in indices] == [1, 3, 0] + [55] * 20
        assert all(row == sorted(set(row)) for row in indices)
    if "colbert" in config.outputs:
        lengths = [len(row) for row in ours.columns["colbert"].to_pylist()]
        assert lengths == [len(row) - 1 for row in TOKENS.to_pylist()]
    same = {"dtype": "", "device": "", "space_fingerprint": ""}
    assert dataclasses.replace(made.info, **same) == dataclasses.replace(real.info, **same)


def test_batches_are_those_of_a_real_encoder_on_a_gpu(monkeypatch):
    on_gpu = property(lambda self: self.batches.max_batch_tokens)  # a micro-batch at a time
    monkeypatch.setattr(Forward, "window_tokens", on_gpu)
    real = load_encoder(dataclasses.replace(TINY, max_batch_tokens=100))
    made = load_simulated(simulated(max_batch_tokens=100))
    chunked = pa.chunked_array([TOKENS.slice(0, 4), TOKENS.slice(4)])
    found = [(batch.start, batch.stop) for batch in made.stream(chunked, ("dense",))]
    assert found == [(batch.start, batch.stop) for batch in real.stream(chunked)]


def test_a_batch_larger_than_what_is_made_before():
    [batch] = load_simulated(simulated()).stream(pa.array([[5] * 500] * 9))
    assert len(batch.columns["colbert"].combine_chunks().flatten()) == 9 * 499


def test_its_space_is_not_that_of_the_model():
    def space(config):
        return fingerprint(space_parts(config, resolve_model(config)))

    assert load_simulated(simulated()).info.space_fingerprint == space(simulated())
    assert space(simulated()) == space(simulated(simulated_tokens_per_second=5.0)) != space(TINY)
    assert "simulated" not in space_parts(TINY, resolve_model(TINY))


def test_its_speed_is_not_remembered_as_the_models(make_config, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = make_config("docs", model={"simulated_tokens_per_second": 5e4})
    remember_speed(config, 5e4, "simulated")
    assert recall_speed(make_config("docs")) is None


def test_load_encoder_and_the_endpoint_refuse_it_and_a_speed_of_nothing_is_none():
    with pytest.raises(ModelError, match=r"simulated_tokens_per_second: expected a model that"):
        load_encoder(simulated())
    model = {"name": "builtin:tiny-m3", "simulated_tokens_per_second": 1000}
    with pytest.raises(ModelError, match="simulated_tokens_per_second") as caught:
        _load(parse_endpoint_config({"model": model}))
    assert "\n" not in str(caught.value)
    for speed in (0.0, -1.0, float("nan")):
        with pytest.raises(ModelError, match="more than 0"):
            simulated(simulated_tokens_per_second=speed)


NO_TORCH = """
import sys
import pyarrow as pa
from actors.config import ModelConfig
from pipelines.run.job import load_encoder
outputs = {"outputs": ("dense", "sparse"), "simulated_tokens_per_second": 1e6}
list(load_encoder(ModelConfig(name="builtin:tiny-m3", **outputs)).stream(pa.array([[1, 2]])))
print("torch" in sys.modules)
"""


def test_without_colbert_no_torch_is_loaded():
    resolve_model(TINY)  # written by now
    command = [sys.executable, "-c", NO_TORCH]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_embed_corpus_commits_with_it(ray_cluster, make_config, articles, tmp_path):
    pq.write_table(articles.slice(0, 60), tmp_path / "docs.parquet")
    config = make_config(tmp_path / "docs.parquet", model={"simulated_tokens_per_second": 50_000})
    manifest = embed_corpus(config)
    assert manifest.counts.documents == 60
    table = open_index(config.index.uri).to_table(
        columns=["n_tokens", "dense", "sparse", "colbert"]
    )
    assert table.num_rows == manifest.counts.passages
    assert [len(row) + 1 for row in table["colbert"].to_pylist()] == table["n_tokens"].to_pylist()
    report = json.loads((Path(config.index.uri) / "generations/000001/report.json").read_text())
    assert 0 < report["encoder_busy"] <= 1
