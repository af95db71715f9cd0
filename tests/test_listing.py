"""Locations: folders, globs, lists of them, in every kind of store."""

from __future__ import annotations

import os
import sys

import fsspec
import pytest
from reading import column, documents, http_place, place, source_of

from actors.errors import SourceChangedError, SourceError
from pipelines.source.listing import common_folder, describe_file, find_files, is_http, is_local

__all__ = ["place"]


def line(doc_id):
    return f'{{"id": "{doc_id}", "text": "text of {doc_id}"}}\n'.encode()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(root, options=None):
    fs, path = fsspec.core.url_to_fs(str(root), **(options or {}))
    found = find_files(fs, path)
    return [file.path.removeprefix(found.base).lstrip("/") for file in found.files]


def test_find_files_in_every_store_takes_folders_globs_and_files(place):
    root, options, put = place
    every = ["a.jsonl", "b.csv", "deep/c.jsonl", "deep/er/d.jsonl"]
    for name in (*every, "_e.jsonl", ".f.jsonl", "_tmp/g.jsonl", "deep/.h/i.jsonl"):
        put(name, line(name))
    assert names(f"{root}/", options) == every
    assert names(f"{root}/deep/", options) == ["c.jsonl", "er/d.jsonl"]
    assert names(f"{root}/*.jsonl", options) == ["a.jsonl"]
    assert names(f"{root}/*/*.jsonl", options) == ["deep/c.jsonl"]
    assert names(f"{root}/**/*.jsonl", options) in (
        ["a.jsonl", "deep/c.jsonl", "deep/er/d.jsonl"],
        ["deep/c.jsonl", "deep/er/d.jsonl"],  # where ** is one folder or more
    )
    assert names(f"{root}/deep/c.jsonl", options) == ["c.jsonl"]
    assert names(f"{root}/none*", options) == []


def test_find_files_and_describe_file_agree_in_every_store(place):
    """Else a run would take every file for changed."""
    root, options, put = place
    put("a.jsonl", line("a"))
    fs, path = fsspec.core.url_to_fs(root, **options)
    for where in (f"{path}/", f"{path}/*.jsonl", f"{path}/a.jsonl"):
        [file] = find_files(fs, where).files
        assert describe_file(fs, file.path) == file
        assert file.size in (len(line("a")), -1)


def test_find_files_nothing_there_raises(place):
    root, options, put = place
    put("a.jsonl", b"")
    fs, path = fsspec.core.url_to_fs(root, **options)
    for absent in ("absent.jsonl", "absent/"):
        with pytest.raises(FileNotFoundError):
            find_files(fs, f"{path}/{absent}")


def test_locations_of_a_list_are_read_in_its_order_with_distinct_ids(place):
    root, options, put = place
    for name in ("2023/posts.jsonl", "2024/posts.jsonl", "extra.jsonl"):
        put(name, line(name))
    uris = [f"{root}/2024/posts.jsonl", f"{root}/2023/", f"{root}/ext*.jsonl"]
    rows = documents(uris, columns={"id": None}, storage_options=options)
    assert column(rows, "doc_id") == ["2024/posts.jsonl:0", "2023/posts.jsonl:0", "extra.jsonl:0"]
    assert column(rows) == [f"text of {doc_id[:-2]}" for doc_id in column(rows, "doc_id")]


def test_location_that_is_moved_keeps_its_ids(tmp_path):
    for folder in ("here", "there/deep"):
        write(tmp_path / folder / "x/a.jsonl", line("a"))
    first, second = (
        documents(tmp_path / folder, columns={"id": None}) for folder in ("here", "there/deep")
    )
    assert first == second
    assert column(first, "doc_id") == ["x/a.jsonl:0"]


def test_locations_that_name_a_file_twice_read_it_once(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", line(name))
    uris = [tmp_path / "b.jsonl", tmp_path, tmp_path / "*.jsonl", tmp_path / "b.jsonl"]
    assert column(documents(uris), "doc_id") == ["b", "a"]


def test_location_named_itself_is_read_whatever_a_folder_would_take(tmp_path):
    write(tmp_path / "a.jsonl", line("a"))
    write(tmp_path / "b.odd", line("b"))
    assert column(documents(tmp_path), "doc_id") == ["a"]
    assert column(documents([tmp_path, tmp_path / "b.odd"]), "doc_id") == ["a", "b"]
    assert column(documents([tmp_path / "b.odd", tmp_path]), "doc_id") == ["b", "a"]


def test_locations_of_which_one_is_absent_are_refused_naming_it(tmp_path):
    write(tmp_path / "a.jsonl", line("a"))
    with pytest.raises(SourceError, match=r"found nothing at .*/absent\."):
        documents([tmp_path / "a.jsonl", tmp_path / "absent"])


def test_locations_in_two_stores_are_refused(tmp_path, s3_bucket):
    uri, options = s3_bucket
    write(tmp_path / "a.jsonl", line("a"))
    with pytest.raises(SourceError, match=r"expected locations in one store, got .* and 1 more"):
        source_of([tmp_path / "a.jsonl", f"{uri}/b.jsonl"], storage_options=options)


@pytest.mark.parametrize(
    ("uri", "package"),
    [("gs://bucket/docs", "gcsfs"), ("az://container/docs", "adlfs"), ("abfs://c/docs", "adlfs")],
)
def test_location_whose_driver_is_not_installed_is_one_line_naming_it(uri, package, monkeypatch):
    # Installed or not on this machine: None in sys.modules is an import that fails.
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SourceError, match=f"cannot read {uri} .*nstall {package}") as caught:
        source_of(uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["http-ranges", "http"])
def test_http_file_that_changed_since_it_was_listed_is_not_read(tmp_path, kind):
    """Also one of the same size, from a server without ETags."""
    path = write(tmp_path / "a.jsonl", line("a"))
    os.utime(path, (1, 1))
    url, stop = http_place(tmp_path, kind)
    try:
        source = source_of(f"{url}/a.jsonl")
        [unit] = source.units(source.list_files())
        assert [batch.table["doc_id"].to_pylist() for batch in source.read(unit)] == [["a"]]
        write(path, line("b"))
        with pytest.raises(SourceChangedError, match=r"a\.jsonl: changed since"):
            list(source.read(unit))
    finally:
        stop()


def test_http_url_with_a_query_is_read_as_what_its_name_says(tmp_path):
    write(tmp_path / "a.csv", b"id,text\na,x\n")
    url, stop = http_place(tmp_path, "http")
    try:
        rows = documents(f"{url}/a.csv?download=true", columns={"id": None})
    finally:
        stop()
    assert column(rows) == ["x"]


def test_http_server_that_is_not_there_is_one_line(tmp_path):
    url, stop = http_place(tmp_path, "http")
    stop()
    with pytest.raises(SourceError, match=r"source\.uri: expected ") as caught:
        documents(f"{url}/a.csv")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("bases", "folder"),
    [
        (["/a/b"], "/a/b"),
        (["/a/b", "/a/b"], "/a/b"),
        (["/a/b", "/a/b/c"], "/a/b"),
        (["/a/b", "/a/bc"], "/a"),
        (["/a", "/b"], ""),
        (["bucket/x", "other/x"], ""),
    ],
)
def test_common_folder_is_the_deepest_of_all(bases, folder):
    assert common_folder(bases) == folder


@pytest.mark.parametrize(
    ("protocol", "local", "http"),
    [("file", True, False), ("s3", False, False), ("http", False, True), ("memory", False, False)],
)
def test_kind_of_a_store_is_told_by_its_protocol(protocol, local, http):
    fs = fsspec.filesystem(protocol)
    assert (is_local(fs), is_http(fs)) == (local, http)
    cached = fsspec.filesystem("filecache", fs=fs)  # whose name begins with "file"
    assert not is_local(cached)
