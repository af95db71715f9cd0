"""The builtin tiny M3: the same bytes everywhere, safe to race to, loaded like the real one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from actors.config import OUTPUTS, ModelConfig
from actors.encoder import load_encoder
from actors.models.tiny import HIDDEN, ensure_tiny_m3
from actors.tokens.tokenizer import TextTokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return ensure_tiny_m3(tmp_path_factory.mktemp("cache"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tiny_model_written_twice_is_byte_identical_whatever_the_seed(folder, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        before = torch.random.get_rng_state()
        again = ensure_tiny_m3(tmp_path)
        assert torch.equal(torch.random.get_rng_state(), before)  # left alone
    assert again.name == folder.name
    assert contents(again) == contents(folder)


def test_tiny_model_second_call_keeps_the_first_folder_readable_by_others(folder):
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert ensure_tiny_m3(folder.parent) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    assert list(folder.parent.iterdir()) == [folder]
    assert folder.stat().st_mode & 0o055 == 0o055


RACER = """
import sys
from pathlib import Path
import torch, transformers  # the slow imports first, so that both write at the same time
from actors.models.tiny import ensure_tiny_m3
print("ready", flush=True)
sys.stdin.readline()
print(ensure_tiny_m3(Path(sys.argv[1])))
"""


def test_tiny_model_two_processes_racing_leave_one_complete_folder(folder, tmp_path):
    command, pipe = [sys.executable, "-c", RACER, str(tmp_path)], subprocess.PIPE
    racers = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT, text=True) for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    answers = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert answers == [str(tmp_path / folder.name)] * 2
    assert list(tmp_path.iterdir()) == [tmp_path / folder.name]  # nor any staging folder left
    assert contents(tmp_path / folder.name) == contents(folder)


def test_tiny_model_loads_by_its_builtin_name_with_all_outputs(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = ModelConfig(name="builtin:tiny-m3", outputs=OUTPUTS, device="cpu", dtype="float32")
    encoder = load_encoder(config)
    assert (encoder.info.dim, encoder.info.colbert_dim) == (HIDDEN, HIDDEN)
    assert encoder.info.max_length == 512
    texts = ["What is BGE M3?", "Ray is a distributed engine.", ""]
    rows = encoder.encode_passages(texts).to_pylist()
    assert np.unique([row["dense"] for row in rows], axis=0).shape == (3, HIDDEN)
    assert rows[0]["sparse"]["indices"] != rows[1]["sparse"]["indices"]
    assert len(rows[2]["colbert"]) == 1
    assert [path.name for path in (tmp_path / "packvec").iterdir()] == [folder.name]


def test_tiny_model_every_printable_ascii_text_has_no_unknown_token(folder):
    text = " ".join(chr(code) for code in range(33, 127))
    assert 3 not in TextTokenizer(folder, 512).tokenize([text, text.replace(" ", "")]).values


def test_tiny_model_empty_cache_variable_means_the_default(monkeypatch, tmp_path):
    """XDG Base Directory: "either not set or empty"."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert ensure_tiny_m3().parent == tmp_path / "home" / ".cache" / "packvec"
