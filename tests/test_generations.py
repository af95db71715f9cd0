"""Generations: which there are, which one readers see, and how to go back."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from generations_by_hand import manifest_of

from actors.errors import IndexStateError
from pipelines.index.generations import (
    committed_generations,
    highest_generation,
    live_generation,
    publications,
    publish,
    publish_next,
    read_manifest,
    require_live,
)
from pipelines.index.layout import manifest_path, publication_path
from pipelines.store import open_store


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    if request.param == "local":
        return open_store(str(tmp_path / "index"))
    uri, options = request.getfixturevalue("s3_bucket")
    return open_store(f"{uri}/index", options)


def commit(store, *generations):
    for generation in generations:
        assert store.create_exclusive(manifest_path(generation), manifest_of(generation).to_bytes())


def rewrite(store, generation, **changes):
    raw = json.loads(manifest_of(generation).to_bytes()) | changes
    store.overwrite(manifest_path(generation), json.dumps(raw).encode())


# Which there are


def test_highest_generation_of_no_index_is_zero(store):
    assert highest_generation(store) == 0


def test_highest_generation_is_that_with_the_highest_manifest(store):
    commit(store, 9, 2, 10, 1)
    assert highest_generation(store) == 10


def test_highest_generation_ignores_a_folder_without_manifest(store):
    commit(store, 1, 2)
    store.overwrite("generations/000003/parts-abc.parquet", b"of a committer that died")
    store.overwrite("generations/000007/documents-abc.parquet", b"of another")
    assert highest_generation(store) == 2


def test_highest_generation_of_dead_committers_only_is_zero(store):
    store.overwrite("generations/000001/parts-abc.parquet", b"of a committer that died")
    assert highest_generation(store) == 0


def test_highest_generation_needs_no_publication(store):
    commit(store, 1, 2)
    publish(store, 1)
    assert highest_generation(store) == 2


def test_committed_generations_are_those_with_a_manifest_in_order(store):
    assert committed_generations(store) == []
    commit(store, 9, 2, 10)
    store.overwrite("generations/000003/parts-abc.parquet", b"of a committer that died")
    assert committed_generations(store) == [2, 9, 10]


# Manifests


def test_read_manifest_gives_what_was_committed(store):
    commit(store, 3)
    assert read_manifest(store, 3) == manifest_of(3)


def test_read_manifest_absent_says_where(store):
    commit(store, 1)
    with pytest.raises(IndexStateError, match="expected generation 2, found none") as caught:
        read_manifest(store, 2)
    assert store.url(manifest_path(2)) in caught.value.message


def test_read_manifest_newer_format_is_refused(store):
    rewrite(store, 1, format_version=2, tables="of a shape yet to come")
    with pytest.raises(IndexStateError, match="expected format_version 1, found 2") as caught:
        read_manifest(store, 1)
    assert "Upgrade" in caught.value.remedy
    assert caught.value.exit_code == 2


def test_read_manifest_later_keys_are_ignored(store):
    rewrite(store, 1, quality={"recall": 0.97})
    assert read_manifest(store, 1) == manifest_of(1)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'"text"', b'{"format_version": 1, "generation": 1}']
)
def test_read_manifest_damaged_one_is_one_line(tmp_path, content):
    store = open_store(str(tmp_path))
    store.overwrite(manifest_path(1), content)
    with pytest.raises(IndexStateError) as caught:
        read_manifest(store, 1)
    assert caught.value.message.startswith(store.url(manifest_path(1)))
    assert "\n" not in caught.value.message


# Which one readers see


def test_live_generation_before_the_first_publication_is_none(store):
    commit(store, 1)
    assert live_generation(store) is None
    assert publications(store) == {}


def test_publish_makes_a_generation_live(store):
    commit(store, 1, 2)
    publish(store, 1)
    assert live_generation(store) == 1
    publish(store, 2)
    assert live_generation(store) == 2
    assert publications(store) == {1: 1, 2: 2}


def test_publish_an_older_generation_rolls_back(store):
    commit(store, 1, 2)
    publish(store, 1)
    publish(store, 2)
    publish(store, 1)
    assert live_generation(store) == 1
    publish(store, 2)
    assert live_generation(store) == 2
    assert publications(store) == {1: 1, 2: 2, 3: 1, 4: 2}


def test_publish_more_than_nine_times_the_last_one_is_live(store):
    for generation in [*range(1, 11), 4]:
        publish(store, generation)
    assert live_generation(store) == 4
    assert max(publications(store)) == 11


def test_publish_beside_another_writer_is_refused_or_follows_it(store):
    """Of writers who take the same number one is told; no publication is lost."""

    def attempt(generation):
        try:
            publish(store, generation)
        except IndexStateError:
            return None
        return generation

    with ThreadPoolExecutor(4) as pool:
        published = [g for g in pool.map(attempt, [1, 2, 3, 4]) if g]
    found = publications(store)
    assert sorted(found) == [*range(1, len(found) + 1)]
    assert sorted(found.values()) == sorted(published) != []


def test_publish_never_changes_an_earlier_publication(store):
    publish(store, 1)
    before = store.read(publication_path(1))
    publish(store, 2)
    assert store.read(publication_path(1)) == before


def test_publications_damaged_one_is_one_line(store):
    publish(store, 1)
    store.overwrite(publication_path(2), b"{")
    with pytest.raises(IndexStateError, match="expected a publication, found") as caught:
        live_generation(store)
    assert caught.value.message.startswith(store.url(publication_path(2)))
    assert "\n" not in caught.value.message


def test_publications_other_files_beside_them_are_none(store):
    publish(store, 1)
    for name in ("notes.json", "000009.json.bak", "9.json"):
        store.overwrite(f"publications/{name}", b"{}")
    assert publications(store) == {1: 1}


def test_require_live_before_the_first_publication_says_what_to_do(store):
    commit(store, 1)
    with pytest.raises(IndexStateError, match="expected a committed index, found none") as caught:
        require_live(store)
    assert "embed_corpus" in caught.value.remedy
    publish(store, 1)
    assert require_live(store) == 1


def test_publish_next_after_another_publication_is_refused(store):
    publish(store, 1)
    seen = publications(store)
    publish(store, 2)
    with pytest.raises(IndexStateError, match=r"another writer .*; generation 2 is live"):
        publish_next(store, 1, seen)
    assert publications(store) == {1: 1, 2: 2}
