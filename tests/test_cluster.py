"""The pool on a cluster of 4 CPUs and 2 (faked) GPUs, and where its index may lie."""

from __future__ import annotations

import os

import pytest
import ray

from actors.errors import ConfigError, StorageError
from pipelines.cluster.ray_cluster import Pool, has_room, pool_for, ray_session, refuse_local_index
from pipelines.config.sections import RayConfig
from pipelines.store import open_store

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.mark.parametrize(
    ("config", "pool"),
    [
        ({}, Pool(2, 1.0, 1, 2, 2)),
        ({"actors": 1}, Pool(1, 1.0, 1, 1, 1)),
        ({"actors": 1, "cpus_per_actor": 3}, Pool(1, 1.0, 3, 1, 1)),
        ({"gpus_per_actor": 2}, Pool(1, 2.0, 1, 1, 1)),
        ({"gpus_per_actor": 0.75}, Pool(2, 0.75, 1, 2, 2)),
        ({"gpus_per_actor": 0.5, "actors": 3}, Pool(3, 0.5, 1, 3, 3)),
        ({"gpus_per_actor": 0}, Pool(1, 0.0, 2, 1, 1)),
        ({"gpus_per_actor": 0, "actors": 3, "cpus_per_actor": 1}, Pool(3, 0.0, 1, 3, 3)),
        ({"min_actors": 1}, Pool(2, 1.0, 1, 1, 2)),
        ({"max_actors": 8}, Pool(2, 1.0, 1, 1, 8)),
        ({"max_actors": 1}, Pool(1, 1.0, 1, 1, 1)),
        ({"min_actors": 2, "max_actors": 3, "gpus_per_actor": 0.5}, Pool(3, 0.5, 1, 2, 3)),
        ({"max_actors": 3, "gpus_per_actor": 0, "cpus_per_actor": 1}, Pool(3, 0.0, 1, 1, 3)),
    ],
    ids=str,
)
def test_pool_for_takes_what_the_cluster_has(config, pool, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)  # Ray is told of 4
    assert pool_for(RayConfig(**config)) == pool


@pytest.mark.parametrize(
    ("machines", "config", "pool"),
    [
        ([16], {}, Pool(1, 0.0, 12, 1, 1)),
        ([64, 64, 96], {}, Pool(3, 0.0, 48, 3, 3)),
        ([0, 8, 8], {}, Pool(2, 0.0, 6, 2, 2)),
        ([16], {"actors": 4}, Pool(4, 0.0, 3, 4, 4)),
        ([8, 8], {"actors": 4}, Pool(4, 0.0, 3, 4, 4)),
        ([16], {"cpus_per_actor": 4}, Pool(1, 0.0, 4, 1, 1)),
        ([8], {"actors": 1, "cpus_per_actor": 7}, Pool(1, 0.0, 7, 1, 1)),
        ([4], {}, Pool(1, 0.0, 3, 1, 1)),
    ],
    ids=str,
)
def test_pool_for_machines_without_gpus_is_an_actor_each_with_most_cores(
    machines, config, pool, monkeypatch
):
    nodes = [
        {"NodeManagerHostname": f"m{i}", "Alive": True, "Resources": {"CPU": float(n)}}
        for i, n in enumerate(machines)
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(sum(machines))})
    assert pool_for(RayConfig(**config)) == pool


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"actors": 3}, "ray: 3 actors of 1 GPU and 1 CPU"),
        ({"min_actors": 3}, "ray: 3 actors of 1 GPU and 1 CPU"),
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


@pytest.mark.parametrize(
    ("config", "pool"),
    [
        ({"actors": 4}, Pool(2, 1.0, 1, 2, 2)),
        ({"min_actors": 3, "max_actors": 8}, Pool(2, 1.0, 1, 2, 8)),
        ({"min_actors": 3}, Pool(2, 1.0, 1, 2, 2)),
    ],
    ids=str,
)
def test_pool_for_shrunk_cluster_takes_what_still_fits(config, pool):
    assert pool_for(RayConfig(**config), shrunk=True) == pool


@pytest.mark.parametrize(("actors", "room"), [(1, True), (2, True), (3, False)])
def test_has_room_counts_what_the_cluster_has(actors, room):
    assert has_room(Pool(2, 1.0, 1, 2, 2), actors) is room


def test_has_room_leaves_a_cpu_for_reading():
    pool = Pool(2, 0.0, 2, 2, 2)
    assert (has_room(pool, 1), has_room(pool, 2)) == (True, False)


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
