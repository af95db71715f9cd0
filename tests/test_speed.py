"""A speed is remembered for what it was measured with, and a damaged memory is none."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.config import parse_config
from pipelines.estimate.speed import RememberedSpeed, recall_speed, remember_speed


def config_of(**changes):
    raw = {
        "source": {"uri": "docs"},
        "index": {"uri": "out"},
        "model": {"name": "builtin:tiny-m3"},
        "outputs": ["dense"],
    }
    for key, value in changes.items():
        raw[key] = raw.get(key, {}) | value if isinstance(value, dict) else value
    return parse_config(raw)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "packvec/speed.json"


def test_recall_speed_gives_what_was_remembered_last():
    assert recall_speed(config_of()) is None
    remember_speed(config_of(), 1000.0, "cpu")
    remember_speed(config_of(), 1234.5, "cuda")
    assert recall_speed(config_of()) == RememberedSpeed(1234.5, "measured here on cuda")


@pytest.mark.parametrize(
    "other",
    [
        {"outputs": ["dense", "sparse"]},
        {"model": {"name": "BAAI/bge-m3"}},
        {"model": {"dtype": "float32"}},
        {"model": {"device": "cpu"}},
        {"ray": {"cpus_per_actor": 8}},
    ],
)
def test_recall_speed_for_another_computation_is_none(other):
    remember_speed(config_of(), 1000.0, "cuda")
    assert recall_speed(config_of(**other)) is None


def test_recall_speed_for_another_corpus_is_the_same():
    remember_speed(config_of(), 1000.0, "cuda")
    other = config_of(source={"uri": "others"}, index={"uri": "there"}, chunk={"overlap": 3})
    assert recall_speed(other) == RememberedSpeed(1000.0, "measured here on cuda")


def test_remember_speed_keeps_the_others(cache):
    for number in range(150):
        remember_speed(config_of(model={"name": f"model-{number}"}), 100.0 + number, "cpu")
    assert len(json.loads(cache.read_text())) == 100
    assert recall_speed(config_of(model={"name": "model-149"})) == RememberedSpeed(
        249.0, "measured here on cpu"
    )
    assert recall_speed(config_of(model={"name": "model-50"})) is not None
    assert recall_speed(config_of(model={"name": "model-49"})) is None  # the oldest goes first
    assert [path.name for path in cache.parent.iterdir()] == ["speed.json"]


@given(st.binary() | st.from_regex(rb"[\[{][\[{}\]\":, 0-9a-z]*", fullmatch=True))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_speed_file_of_whatever_content_is_no_error(cache, content):
    cache.parent.mkdir(exist_ok=True)
    cache.write_bytes(content)
    assert recall_speed(config_of()) is None
    remember_speed(config_of(), 7.0, "cpu")
    assert recall_speed(config_of()) == RememberedSpeed(7.0, "measured here on cpu")


@pytest.mark.parametrize("value", [0, -1, "fast", True, None, float("nan"), float("inf"), [1], {}])
def test_recall_speed_of_a_value_that_is_none_is_none(cache, value):
    remember_speed(config_of(), 7.0, "cpu")
    known = json.loads(cache.read_text())
    [entry] = known.values()
    entry["tokens_per_second"] = value
    cache.write_text(json.dumps(known))
    assert recall_speed(config_of()) is None


def test_remember_speed_where_nothing_can_be_written_does_nothing(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    remember_speed(config_of(), 7.0, "cpu")
    assert recall_speed(config_of()) is None
