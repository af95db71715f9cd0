"""Configuration: what loads, what is refused and how it says so, what is stored with an index."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from actors.config import ModelConfig
from actors.errors import ConfigError
from pipelines.config import RunConfig, load_config, parse_config

ROOT = Path(__file__).parents[1]
RUNS = sorted(
    path for path in (ROOT / "conf").glob("*.yaml") if "model" in yaml.safe_load(path.read_text())
)

MINIMAL = {
    "source": {"uri": "docs.parquet"},
    "index": {"uri": "out/index"},
    "model": {"name": "builtin:tiny-m3"},
}


@pytest.fixture
def write(tmp_path):
    def to_file(content):
        path = tmp_path / "run.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return to_file


@pytest.fixture
def minimal(write):
    return write(MINIMAL)


def changed(section, **keys):
    return MINIMAL | {section: MINIMAL.get(section, {}) | keys}


# Loading


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_load_config_example_loads(path):
    config = load_config(path)
    assert config.source.uri == yaml.safe_load(path.read_text())["source"]["uri"]


def test_load_config_examples_are_seen_by_this_test():
    assert {"debug.yaml", "quickstart.yaml", "wiki.yaml"} <= {path.name for path in RUNS}


def test_load_config_minimal_gives_dense_of_whole_documents(minimal):
    config = load_config(minimal)
    assert config.encoder == ModelConfig(name="builtin:tiny-m3", outputs=("dense",))
    assert (config.source.columns.id, config.source.columns.text) == ("id", "text")
    assert config.source.limit is None


def test_load_config_outputs_reach_the_encoder(write):
    config = load_config(write(MINIMAL | {"outputs": ["colbert", "dense"]}))
    assert config.encoder.outputs == ("colbert", "dense")


def test_load_config_is_frozen(minimal):
    config = load_config(minimal)
    with pytest.raises(ValueError, match="frozen"):
        config.source.uri = "elsewhere"


# Refusals


@pytest.mark.parametrize(
    ("raw", "key", "remedy"),
    [
        (MINIMAL | {"modle": {}}, "modle", "Did you mean 'model'?"),
        (changed("source", url="x"), "source.url", "Did you mean 'uri'?"),
        (
            changed("source", columns={"titel": "t"}),
            "source.columns.titel",
            "Did you mean 'title'?",
        ),
        (changed("index", store_texts=True), "index.store_texts", "Did you mean 'store_text'?"),
        (changed("model", max_lenght=5), "model.max_lenght", "Did you mean 'max_length'?"),
        (changed("chunk", overlp=5), "chunk.overlp", "Did you mean 'overlap'?"),
        (changed("slice", document=5), "slice.document", "Did you mean 'documents'?"),
        (changed("ray", actor=5), "ray.actor", "Did you mean 'actors'?"),
        (changed("ray", zzz=5), "ray.zzz", "Expected one of: engine, address, actors, "),
        (MINIMAL | {7: 1}, "7", "Expected one of: source, index, "),
    ],
)
def test_load_config_unknown_key_names_it_and_its_neighbour(write, raw, key, remedy):
    path = write(raw)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.message == f"{path}: unknown key {key!r}."
    assert caught.value.remedy.startswith(remedy)


def test_load_config_storage_options_take_any_key(write):
    raw = MINIMAL | {"source": {"uri": "s3://b/d", "storage_options": {"client_kwargs": {"a": 1}}}}
    assert load_config(write(raw)).source.storage_options == {"client_kwargs": {"a": 1}}


def test_load_config_model_outputs_are_refused(write):
    with pytest.raises(ConfigError, match=r"unknown key 'model\.outputs'"):
        load_config(write(changed("model", outputs=["dense"])))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (changed("slice", documents="many"), r"slice\.documents: expected a valid integer.*'many'"),
        (changed("slice", documents=0), r"slice\.documents: expected greater than.* 1, got 0"),
        (changed("source", limit=-3), r"source\.limit: expected .*, got -3"),
        (changed("chunk", overlap=-1), r"chunk\.overlap: expected .* 0, got -1"),
        (changed("chunk", by="words"), r"chunk\.by: expected 'none' or 'tokens', got 'words'"),
        (changed("source", columns=["id"]), r"source\.columns: expected .*, got \['id'\]"),
        (changed("source", uri=5), r"source\.uri: expected a string or a list of strings, got 5"),
        (changed("model", dtype="int8"), r"model\.dtype: expected 'auto', .*, got 'int8'"),
        (MINIMAL | {"model": "bge-m3"}, r"model: expected .*, got 'bge-m3'"),
        (MINIMAL | {"model": None}, r"model: expected .*, got None"),
        (MINIMAL | {"outputs": "dense"}, r"outputs: expected .*, got 'dense'"),
        (MINIMAL | {"outputs": ["lexical"]}, r"outputs\.0: expected 'dense', .*, got 'lexical'"),
        (changed("source", columns={"metadata": "url"}), r"source\.columns\.metadata: .*'url'"),
    ],
)
def test_load_config_wrong_value_says_where_expected_and_got(write, raw, expected):
    path = write(raw)
    with pytest.raises(ConfigError, match=expected) as caught:
        load_config(path)
    assert caught.value.message.startswith(f"{path}: ")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("outputs", [[], ["dense", "dense"]])
def test_load_config_outputs_empty_or_repeated_are_refused(write, outputs):
    with pytest.raises(ConfigError, match="outputs: expected one or more of dense, sparse"):
        load_config(write(MINIMAL | {"outputs": outputs}))


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ({k: v for k, v in MINIMAL.items() if k != "index"}, "index"),
        (MINIMAL | {"source": {}}, "source.uri"),
        (MINIMAL | {"model": {"heads": "x"}}, "model.name"),
        ({}, "source"),
    ],
)
def test_load_config_missing_key_is_named(write, raw, key):
    path = write(raw)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.message == f"{path}: {key} is required."


def test_load_config_missing_file_points_to_examples(tmp_path):
    with pytest.raises(ConfigError, match=r"no such configuration: .*absent\.yaml") as caught:
        load_config(tmp_path / "absent.yaml")
    assert "conf/" in caught.value.remedy


@pytest.mark.parametrize("content", ["a: [1, 2", "a:\n\t- b: }", "{{"])
def test_load_config_not_yaml_is_one_line(write, content):
    path = write(content)
    with pytest.raises(ConfigError, match="expected YAML, found") as caught:
        load_config(path)
    assert caught.value.message.startswith(str(path))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("content", ["", "- a\n- b", "just text", "7"])
def test_load_config_not_sections_is_refused(write, content):
    with pytest.raises(ConfigError, match="expected sections"):
        load_config(write(content))


def test_load_config_unreadable_file_is_refused(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00name")
    for path in (tmp_path, tmp_path / "binary.yaml"):
        with pytest.raises(ConfigError, match="expected YAML, found"):
            load_config(path)


# Overrides


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("slice.documents=7", lambda c: c.slice.documents, 7),
        ("source.columns.title=headline", lambda c: c.source.columns.title, "headline"),
        ("source.columns.metadata=[a, b]", lambda c: c.source.columns.metadata, ("a", "b")),
        ("outputs=[dense, sparse]", lambda c: c.outputs, ("dense", "sparse")),
        ("index.store_text=false", lambda c: c.index.store_text, False),
        ("model.normalize=no", lambda c: c.model.normalize, False),
        ("ray.gpus_per_actor=0.5", lambda c: c.ray.gpus_per_actor, 0.5),
        ("source.limit=", lambda c: c.source.limit, None),
        ("source.limit=null", lambda c: c.source.limit, None),
        ("model.query_instruction='a=b: '", lambda c: c.model.query_instruction, "a=b: "),
        ("index.uri=s3://bucket/a=b", lambda c: c.index.uri, "s3://bucket/a=b"),
        ("index.storage_options.key=k", lambda c: c.index.storage_options, {"key": "k"}),
        ("model={name: other}", lambda c: c.model.name, "other"),
    ],
)
def test_load_config_override_sets_the_value(write, override, read, value):
    path = write(MINIMAL | {"slice": {"documents": 3}})
    assert read(load_config(path, [override])) == value


def test_load_config_override_leaves_its_neighbours(write):
    config = load_config(write(changed("slice", documents=3)), ["slice.max_tokens=9"])
    assert (config.slice.documents, config.slice.max_tokens) == (3, 9)


def test_load_config_override_fills_an_empty_section(write):
    path = write(yaml.safe_dump(MINIMAL) + "slice:\n")
    assert load_config(path, ["slice.documents=9"]).slice.documents == 9


def test_load_config_later_override_wins(minimal):
    config = load_config(minimal, ["source.limit=1", "source.limit=2"])
    assert config.source.limit == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("slice.documents", r"--set 'slice\.documents': expected a\.b=value"),
        ("=5", r"--set '=5': expected a\.b=value"),
        ("source.uri.x=1", r"--set 'source\.uri\.x=1': uri is a value, not a section"),
        ("outputs=[dense", r"--set 'outputs=\[dense': "),
        ("slice.docs=5", r"unknown key 'slice\.docs'"),
        ("slice.documents=few", r"slice\.documents: expected a valid integer"),
        ("slice=5", r"slice: expected .*, got 5"),
    ],
)
def test_load_config_bad_override_is_refused(minimal, override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(minimal, [override])
    assert "\n" not in caught.value.message


# What is stored


def test_resolved_holds_no_secret():
    secrets = {"key": "AKIA-me", "secret": "hush", "client_kwargs": {"token": "deep-hush"}}
    raw = {
        "source": {"uri": "s3://a/b", "storage_options": secrets},
        "index": {"uri": "s3://c/d", "storage_options": secrets},
        "model": {"name": "m"},
    }
    stored = yaml.safe_dump(parse_config(raw).resolved())
    assert "client_kwargs" in stored
    for secret in ("AKIA-me", "hush", "deep-hush"):
        assert secret not in stored


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_resolved_read_again_is_the_same_configuration(path):
    config = load_config(path)
    again = parse_config(yaml.safe_load(yaml.safe_dump(config.resolved())))
    assert again.encoder == config.encoder
    assert again.source == config.source
    assert again.index == config.index
    assert again.chunk == config.chunk
    assert again.slice_max_tokens == config.slice_max_tokens
    assert again.resolved() == config.resolved()


@pytest.mark.parametrize(
    ("outputs", "tokens"), [(["dense"], 1_048_576), (["sparse", "colbert"], 131_072)]
)
def test_slice_max_tokens_default_depends_on_colbert(outputs, tokens):
    config = parse_config(MINIMAL | {"outputs": outputs})
    assert config.slice_max_tokens == tokens
    assert config.resolved()["slice"]["max_tokens"] == tokens


def test_slice_max_tokens_given_is_kept():
    config = parse_config(MINIMAL | {"outputs": ["colbert"], "slice": {"max_tokens": 5}})
    assert config.slice_max_tokens == 5


def test_run_config_survives_json():
    """How a configuration reaches the reading tasks."""
    config = parse_config(changed("model", max_length=64) | {"outputs": ["sparse"]})
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_config_index_inside_the_source_is_refused():
    with pytest.raises(ConfigError, match=r"index\.uri: expected a place outside of source\.uri"):
        parse_config(
            {"source": {"uri": "docs"}, "index": {"uri": "docs/idx"}, "model": {"name": "m"}}
        )


def test_config_with_absolute_paths_leaves_remote_and_named_models_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    raw = {"source": {"uri": "docs"}, "index": {"uri": "s3://b/i"}, "model": {"name": "model"}}
    config = parse_config(raw).with_absolute_paths()
    assert config.source.uri == str(tmp_path / "docs")
    assert config.index.uri == "s3://b/i"
    assert config.model.name == str(tmp_path / "model")
    named = parse_config(raw | {"model": {"name": "BAAI/bge-m3"}}).with_absolute_paths()
    assert named.model.name == "BAAI/bge-m3"
