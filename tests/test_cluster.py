"""The pool on a cluster of 4 CPUs and 2 (faked) GPUs, and where its index may lie."""

from __future__ import annotations

import pytest
import ray

from actors.errors import ConfigError, StorageError
from pipelines.cluster import Pool, pool_for, ray_session, refuse_local_index
from pipelines.config import RayConfig
from pipelines.storage import open_store

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.mark.parametrize(
    ("config", "pool"),
    [
        ({}, Pool(actors=2, gpus=1.0, cpus=1)),
        ({"actors": 1}, Pool(actors=1, gpus=1.0, cpus=1)),
        ({"actors": 1, "cpus_per_actor": 3}, Pool(actors=1, gpus=1.0, cpus=3)),
        ({"gpus_per_actor": 2}, Pool(actors=1, gpus=2.0, cpus=1)),
        ({"gpus_per_actor": 0.75}, Pool(actors=2, gpus=0.75, cpus=1)),
        ({"gpus_per_actor": 0.5, "actors": 3}, Pool(actors=3, gpus=0.5, cpus=1)),
        ({"gpus_per_actor": 0}, Pool(actors=1, gpus=0.0, cpus=2)),
        ({"gpus_per_actor": 0, "actors": 3, "cpus_per_actor": 1}, Pool(3, 0.0, 1)),
    ],
    ids=str,
)
def test_pool_for_takes_what_the_cluster_has(config, pool):
    assert pool_for(RayConfig(**config)) == pool


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"actors": 3}, "ray: 3 actors of 1 GPU and 1 CPU"),
        ({"gpus_per_actor": 3}, "ray: 1 actors of 3 GPU"),
        ({"cpus_per_actor": 2}, "ray: 2 actors of 1 GPU and 2 CPU"),
        ({"gpus_per_actor": 0, "actors": 4, "cpus_per_actor": 1}, "ray: 4 actors of 0 GPU"),
        ({"gpus_per_actor": 0.5}, "ray: 4 actors of 0.5 GPU"),
    ],
    ids=str,
)
def test_pool_for_more_than_the_cluster_has_is_refused(config, message):
    with pytest.raises(ConfigError, match=message) as caught:
        pool_for(RayConfig(**config))
    assert "do not fit a cluster of 2 GPU and 4 CPU" in caught.value.message
    assert "ray.actors" in caught.value.remedy


def test_refuse_local_index_on_one_machine_is_accepted(tmp_path):
    refuse_local_index(open_store(str(tmp_path)))


def of_machines(*names, dead=()):
    """What `ray.nodes()` says of a larger cluster than a test can start."""
    return lambda: [
        {"NodeManagerHostname": name, "Alive": alive}
        for alive, group in ((True, names), (False, dead))
        for name in group
    ]


def test_refuse_local_index_on_several_machines_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "nodes", of_machines("head", "worker-1", "worker-2"))
    with pytest.raises(StorageError, match="on a cluster of 3 machines, got the local") as caught:
        refuse_local_index(open_store(str(tmp_path)))
    assert str(tmp_path) in caught.value.message
    assert "s3://" in caught.value.remedy


@pytest.mark.parametrize(
    ("uri", "nodes"),
    [
        ("s3://bucket/index", of_machines("head", "worker")),
        ("/local/index", of_machines("head", "head")),
        ("/local/index", of_machines("head", dead=["worker"])),
    ],
    ids=["object storage", "two nodes of one machine", "the other one is dead"],
)
def test_refuse_local_index_where_all_see_the_same_is_accepted(uri, nodes, monkeypatch):
    monkeypatch.setattr(ray, "nodes", nodes)
    refuse_local_index(open_store(uri))


def test_ray_session_in_a_connected_process_leaves_the_cluster_running():
    before = ray.get_runtime_context().gcs_address
    with ray_session(RayConfig(address="ray://nowhere:1")):
        assert ray.get_runtime_context().gcs_address == before
    assert ray.is_initialized()
