"""The args of the application, the files that hold them, and their documentation."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from conftest import ROOT
from ray.serve.schema import ServeDeploySchema

from actors.config import RerankerConfig
from actors.errors import ConfigError
from pipelines.config.docs import entries, markdown
from pipelines.endpoint.config import _INTRO, EndpointConfig, parse_endpoint_config

MODEL = {"name": "m"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "model.name or index.uri is required"),
        ({"modle": MODEL}, "unknown key 'modle'"),
        ({"model": {"nme": "m"}}, "unknown key 'model.nme'"),
        ({"model": MODEL, "index": {"url": "x"}}, "unknown key 'index.url'"),
        ({"model": MODEL, "index": {}}, "index.uri is required"),
        ({"model": MODEL, "limits": {"max_texts": 0}}, "limits.max_texts: expected"),
        ({"model": MODEL, "outputs": ["dens"]}, "outputs.0: expected"),
        ({"model": MODEL, "outputs": []}, "outputs: expected some of"),
        ({"model": MODEL, "outputs": ["dense", "dense"]}, "each once"),
        ({"model": MODEL, "search": {}}, "search: expected index.uri"),
        ({"model": MODEL, "search": {"shard": 2}}, "unknown key 'search.shard'"),
        ({"index": {"uri": "x"}, "search": {"shards": 0}}, "search.shards: expected"),
        ({"model": MODEL, "reranker": {}}, "reranker.name is required"),
        ({"model": MODEL, "reranker": {"nam": "r"}}, "unknown key 'reranker.nam'"),
        (
            {"model": MODEL, "reranker": {"name": "r", "max_length": "x"}},
            "reranker.max_length:",
        ),
        (
            {"model": MODEL, "reranker": {"name": "r", "cutoff_layers": [8, 16]}},
            "reranker.cutoff_layers: expected one layer (an endpoint ranks by one score), got 2",
        ),
        ({"model": MODEL, "deployment": {"autoscaling": {"min": 1}}}, "autoscaling.min'"),
    ],
)
def test_endpoint_config_refuses_and_names(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_endpoint_config(args)
    assert message in str(caught.value)


def test_endpoint_config_of_a_reranker_is_the_rerankers_own() -> None:
    own = {"name": "r", "max_length": 100, "cutoff_layers": [8]}
    expected = RerankerConfig(name="r", max_length=100, query_max_length=75, cutoff_layers=(8,))
    assert parse_endpoint_config({"model": MODEL, "reranker": own}).reranker == expected
    assert parse_endpoint_config({"model": MODEL}).reranker is None


def serve_files() -> list[Any]:
    local = yaml.safe_load((ROOT / "conf/serve.yaml").read_text())
    kubernetes = yaml.safe_load((ROOT / "conf/deploy/rayservice.yaml").read_text())
    return [local, yaml.safe_load(kubernetes["spec"]["serveConfigV2"])]


@pytest.mark.parametrize("file", serve_files(), ids=["serve.yaml", "rayservice.yaml"])
def test_endpoint_serve_config_files_are_valid_for_serve_and_for_us(file: Any) -> None:
    ServeDeploySchema.model_validate(file)
    [application] = file["applications"]
    module, _, name = application["import_path"].partition(":")
    assert (module, name) == ("pipelines.endpoint.deployment", "build")
    config = parse_endpoint_config(application["args"])
    if file["http_options"]["host"] != "127.0.0.1":
        assert config.auth.keys_env


def test_endpoint_rayservice_has_room_for_its_replicas() -> None:
    manifest = yaml.safe_load((ROOT / "conf/deploy/rayservice.yaml").read_text())
    config = parse_endpoint_config(serve_files()[1]["applications"][0]["args"])
    [workers] = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    [container] = workers["template"]["spec"]["containers"]
    gpus = container["resources"]["limits"]["nvidia.com/gpu"] * workers["maxReplicas"]
    assert config.deployment.autoscaling
    assert config.deployment.gpus
    assert config.deployment.autoscaling.max_replicas * config.deployment.gpus <= gpus
    grace = workers["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > config.deployment.graceful_shutdown_timeout_s
    secrets = [each["secretRef"]["name"] for each in container["envFrom"]]
    assert "packvec-keys" in secrets


def test_endpoint_configuration_page_is_what_make_docs_writes() -> None:
    page = (ROOT / "docs/endpoint-configuration.md").read_text(encoding="utf-8")
    assert page == markdown(EndpointConfig, _INTRO)


@pytest.mark.parametrize("entry", list(entries(EndpointConfig)), ids=lambda entry: entry.path)
def test_endpoint_key_is_documented(entry: Any) -> None:
    assert entry.doc
