"""Which files a source has: locations of every kind, in every kind of store, and their format."""

from __future__ import annotations

import gzip
import os
import sys

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import column, documents, fill, http_place, place, source_of

from actors.errors import SourceChangedError, SourceError
from pipelines.source.formats.registry import FORMATS, extension_of
from pipelines.source.listing import describe_file, find_files, is_http, is_local
from pipelines.source.units import Listing, SourceFile

__all__ = ["place"]


def parquet():
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": ["p"], "text": ["x"]}), sink)
    return sink.getvalue().to_pybytes()


CONTENT = {
    "parquet": parquet(),
    "jsonl": b'{"id": "j", "text": "x"}\n',
    "csv": b"id,text\nc,x\n",
    "tsv": b"id\ttext\nt,x\n",
    "text": b"plain text\n",
    "wikiextractor": b'<doc id="w" url="u" title="t">\nt\n\nx\n</doc>\n',
}


def line(doc_id):
    return f'{{"id": "{doc_id}", "text": "text of {doc_id}"}}\n'.encode()


def filled(folder, names):
    """Files by name, each with what its name or what it stands for says."""
    return fill(folder, {name: CONTENT.get(content, content) for name, content in names.items()})


def chosen(uri, **how):
    listing = source_of(uri, **how).list_files()
    return listing.format, [listing.name_of(file) for file in listing.files]


# Locations


def test_files_in_every_store_are_those_of_folders_globs_and_names(place):
    root, options, put = place
    every = ["a.jsonl", "b.jsonl", "deep/c.jsonl", "deep/er/d.jsonl"]
    for name in (*every, "_e.jsonl", ".f.jsonl", "_tmp/g.jsonl", "deep/.h/i.jsonl", "x.other"):
        put(name, line(name))

    def names(uri):
        return chosen(f"{root}/{uri}", storage_options=options)[1]

    assert names("") == every
    assert names("deep/") == ["c.jsonl", "er/d.jsonl"]
    assert names("*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert names("*/*.jsonl") == ["deep/c.jsonl"]
    assert names("**/*.jsonl") in (every, every[2:])  # ** is one folder or more, or none
    assert names("deep/c.jsonl") == ["c.jsonl"]
    assert names("x.other") == ["x.other"]
    put("later.jsonl", line("later"))
    assert names("*.jsonl") == ["a.jsonl", "b.jsonl", "later.jsonl"]
    fs, path = fsspec.core.url_to_fs(root, **options)
    for where in (f"{path}/deep/er/", f"{path}/deep/er/*.jsonl", f"{path}/deep/er/d.jsonl"):
        [file] = find_files(fs, where).files
        assert describe_file(fs, file.path) == file  # else a run would take it for changed
        assert file.size in (len(line("deep/er/d.jsonl")), -1)


@pytest.mark.parametrize("uri", ["absent.jsonl", "absent/", "absent*"])
def test_files_of_a_location_with_nothing_there_are_refused_naming_it(place, uri):
    root, options, put = place
    put("a.jsonl", line("a"))
    with pytest.raises(SourceError, match=r"source\.uri: expected .*, found ") as caught:
        source_of([f"{root}/{uri}"], storage_options=options).list_files()
    assert f"{root}/{uri}" in caught.value.message
    assert "*" in uri or caught.value.remedy == "Check the path (and the bucket)."


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
        fill(tmp_path / folder, {"x/a.jsonl": line("a")})
        rows = documents(tmp_path / folder, columns={"id": None})
        assert column(rows, "doc_id") == ["x/a.jsonl:0"]


def test_location_relative_to_the_current_directory_stays_there(tmp_path, monkeypatch):
    fill(tmp_path / "docs", {"a.jsonl": line("a")})
    monkeypatch.chdir(tmp_path)
    source = source_of("docs")
    monkeypatch.chdir("/")
    assert [file.path for file in source.list_files().files] == [str(tmp_path / "docs/a.jsonl")]


def test_locations_that_name_a_file_twice_read_it_once(tmp_path):
    fill(tmp_path, {"a.jsonl": line("a"), "b.jsonl": line("b")})
    uris = [tmp_path / "b.jsonl", tmp_path, tmp_path / "*.jsonl", tmp_path / "b.jsonl"]
    assert column(documents(uris), "doc_id") == ["b", "a"]


def test_location_named_itself_is_read_whatever_a_folder_would_take(tmp_path):
    fill(tmp_path, {"a.jsonl": line("a"), "b.odd": line("b"), "wiki[1].jsonl": line("c")})
    assert column(documents([tmp_path / "a.jsonl", tmp_path / "b.odd"]), "doc_id") == ["a", "b"]
    assert column(documents([tmp_path / "b.odd", tmp_path]), "doc_id") == ["b", "a", "c"]
    assert column(documents(tmp_path / "wiki[1].jsonl"), "doc_id") == ["c"]


def test_location_with_local_links_is_followed_each_folder_once(tmp_path):
    fill(tmp_path / "elsewhere", {"x.jsonl": line("x"), "deep/y.jsonl": line("y")})
    docs = fill(tmp_path / "docs", {"z.jsonl": line("z")})
    (docs / "x.jsonl").symlink_to(tmp_path / "elsewhere/x.jsonl")
    (docs / "linked").symlink_to(tmp_path / "elsewhere/deep")
    (docs / "loop").symlink_to(docs)
    assert chosen(docs)[1] == ["linked/y.jsonl", "x.jsonl", "z.jsonl"]
    found = source_of(docs / "*.jsonl").list_files().files
    target = (tmp_path / "elsewhere/x.jsonl").stat()
    assert (found[0].size, found[0].etag) == (target.st_size, str(target.st_mtime_ns))


def test_locations_that_cannot_be_opened_are_one_line_naming_the_reason(
    tmp_path, s3_bucket, monkeypatch
):
    uri, options = s3_bucket
    fill(tmp_path, {"a.jsonl": line("a")})
    unreachable = {"endpoint_url": "http://127.0.0.1:9", "region_name": "us-east-1"}
    refused = {
        ("nonsense://bucket/x",): r"source\.uri: cannot read nonsense://",
        ("nonsense://",): r"source\.uri: cannot read nonsense://",
        (tmp_path / "a.jsonl", tmp_path / "absent"): r"found nothing at .*/absent\.",
        (tmp_path / "a.jsonl", f"{uri}/b"): r"expected locations in one store, got .* and 1 more",
        ("s3://bucket/docs",): "no connection",
    }
    # Installed or not on this machine: None in sys.modules is an import that fails.
    for driver, scheme in (("gcsfs", "gs"), ("adlfs", "az"), ("adlfs", "abfs")):
        monkeypatch.setitem(sys.modules, driver, None)
        refused[(f"{scheme}://b/docs",)] = f"cannot read {scheme}://b/docs .*nstall {driver}"
    for uris, message in refused.items():
        how = {"storage_options": options} if len(uris) > 1 and uri in str(uris[1]) else {}
        if "s3://bucket" in str(uris[0]):
            config = {"retries": {"max_attempts": 0}}
            how = {
                "storage_options": options | {"client_kwargs": unreachable, "config_kwargs": config}
            }
        with pytest.raises(SourceError, match=message) as caught:
            source_of(uris, **how).list_files()
        assert "\n" not in str(caught.value)


# HTTP


@pytest.mark.parametrize("kind", ["http-ranges", "http"])
def test_http_file_that_changed_since_it_was_listed_is_not_read(tmp_path, kind):
    """Also one of the same size, from a server without ETags."""
    fill(tmp_path, {"a.jsonl": line("a")})
    os.utime(tmp_path / "a.jsonl", (1, 1))
    url, stop = http_place(tmp_path, kind)
    try:
        source = source_of(f"{url}/a.jsonl")
        [unit] = source.units(source.list_files())
        assert [batch.table["doc_id"].to_pylist() for batch in source.read(unit)] == [["a"]]
        fill(tmp_path, {"a.jsonl": line("b")})
        with pytest.raises(SourceChangedError, match=r"a\.jsonl: changed since"):
            list(source.read(unit))
        fill(tmp_path, {"a.csv": "id,text\na,x\n"})
        assert column(documents(f"{url}/a.csv?download=true")) == ["x"]
    finally:
        stop()
    with pytest.raises(SourceError, match=r"source\.uri: expected ") as gone:
        documents(f"{url}/a.csv")
    assert "\n" not in str(gone.value)


# States


FILES = [SourceFile("b/1", 10, "e1"), SourceFile("b/2", 20, "e2")]


def test_listing_hash_tells_states_apart():
    others = [
        [FILES[0], SourceFile("b/3", 20, "e2")],
        [FILES[0], SourceFile("b/2", 21, "e2")],
        [FILES[0], SourceFile("b/2", 20, "e3")],
        [SourceFile("b/1", 1, "0e1"), FILES[1]],
        FILES[:1],
        [*FILES, SourceFile("b/3", 0, "")],
        [],
    ]
    hashes = [Listing(files, "parquet", "").hash for files in (FILES, list(FILES), *others)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 1 + len(others)


@pytest.mark.parametrize("protocol", ["file", "s3", "http", "memory"])
def test_kind_of_a_store_is_told_by_its_protocol(protocol):
    fs = fsspec.filesystem(protocol)
    assert (is_local(fs), is_http(fs)) == (protocol == "file", protocol == "http")
    cached = fsspec.filesystem("filecache", fs=fs)  # whose name begins with "file"
    assert not is_local(cached)


# Formats


def test_extension_is_the_last_that_is_no_compressions():
    cases = {"a.jsonl": ".jsonl", "a.json.GZ": ".json", "a.b.CSV": ".csv", "deep.csv/a": ""}
    cases |= {"a.gz": "", "wiki_00.bz2": "", ".txt.zst": ".txt"}
    cases |= {"https://host/a.csv?x=b.jsonl": ".csv"}
    assert {path: extension_of(path) for path in cases} == cases


@pytest.mark.parametrize("name", [n for n in CONTENT if n != "wikiextractor"])
def test_folder_is_of_the_format_of_its_extensions(tmp_path, name):
    names = {f"f{i}{end}": name for i, end in enumerate(FORMATS[name].extensions)}
    others = {"notes.xyz": b"?", "README": b"?"}
    if name != "text":  # text beside records is about them
        others |= {"README.md": b"# About", "LICENSE.txt": b"MIT"}
    assert chosen(filled(tmp_path, names | others)) == (name, sorted(names))


def test_folder_of_several_formats_is_refused_naming_them(tmp_path):
    filled(tmp_path, {"a.csv": "csv", "b.csv.gz": b"", "deep/c.jsonl": "jsonl", "README.md": b""})
    with pytest.raises(SourceError, match=r"one format at .*, found 2 csv and 1 jsonl") as caught:
        chosen(tmp_path)
    assert "source.format" in caught.value.remedy
    assert chosen(tmp_path, format="jsonl") == ("jsonl", ["deep/c.jsonl"])
    assert chosen(tmp_path / "*.csv*") == ("csv", ["a.csv", "b.csv.gz"])


def test_folder_without_files_of_the_named_format_is_refused(tmp_path):
    fill(tmp_path, {"a.csv": b"", "queries.jsonl": b"{}\n"})
    for name, what in (
        ("tsv", r"tsv files \(\.tsv, .*among 2 files"),
        ("beir", r"beir files \(corpus\.jsonl\) at"),
    ):
        with pytest.raises(SourceError, match=f"expected {what}"):
            chosen(tmp_path, format=name)


def test_named_file_is_of_the_named_format_whatever_its_extension(tmp_path):
    filled(tmp_path, {"data.csv": "jsonl", "other.csv": "jsonl", "x.csv": "csv"})
    assert chosen(tmp_path / "data.csv", format="jsonl") == ("jsonl", ["data.csv"])
    assert chosen(tmp_path / "*a*.csv", format="jsonl") == ("jsonl", ["data.csv"])
    assert column(documents(tmp_path / "data.csv", format="jsonl")) == ["x"]


def test_file_without_a_known_extension_is_known_by_its_beginning(place):
    root, options, put = place
    beginnings = [
        (n, b) for n in ("jsonl", "wikiextractor") for b in (b"", b"\xef\xbb\xbf", b"\n  ")
    ]
    for number, (name, before) in enumerate([("parquet", b""), *beginnings]):
        put(f"{number}.data", before + CONTENT[name])
        assert chosen(f"{root}/{number}.data", storage_options=options)[0] == name, before
    put("corpus.gz", gzip.compress(CONTENT["jsonl"]))
    assert column(documents(f"{root}/corpus.gz", storage_options=options), "doc_id") == ["j"]


def test_folder_is_known_by_its_first_file_that_has_a_beginning(tmp_path):
    names = {"AA/wiki_00": b"", "AA/wiki_01": b"\n", "AA/wiki_02": "wikiextractor"}
    assert chosen(filled(tmp_path, names)) == ("wikiextractor", list(names))


@pytest.mark.parametrize("name", ["corpus", "corpus.gz", "notes.bin.gz"])
def test_file_of_no_known_format_is_refused_naming_the_formats(tmp_path, name):
    for content in (b"", b"who knows", b"\x00\x01", b"\x1f\x8bno gzip"):
        fill(tmp_path, {name: content, "_SUCCESS.parquet": b""})
        for uri in (tmp_path / name, tmp_path):
            with pytest.raises(SourceError, match=rf"a known format at .*, found .*{name}\.") as e:
                chosen(uri)
            assert all(known in e.value.remedy for known in FORMATS)


def test_text_files_are_documents_or_lines_as_named(tmp_path):
    fill(tmp_path, {"a.txt": b"x\ny\n", "b.md": b"# z\n"})
    assert chosen(tmp_path) == ("text", ["a.txt", "b.md"])
    assert column(documents(tmp_path)) == ["x\ny\n", "# z\n"]
    assert chosen(tmp_path, format="lines") == ("lines", ["a.txt"])
    assert column(documents(tmp_path, format="lines")) == ["x", "y"]


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_beir_folder_gives_its_corpus_without_queries_and_judgements(tmp_path, name):
    document = '{"_id": "d1", "title": "T", "text": "é", "metadata": {}}\n'.encode()
    content = gzip.compress(document) if name.endswith(".gz") else document
    others = {"queries.jsonl": b'{"_id": "q", "text": "?"}\n', "qrels/test.tsv": b"q\n"}
    fill(tmp_path, {name: content, "my-corpus.jsonl": b"?", "README.md": b"?"} | others)
    columns = {"id": "_id", "text": "text", "title": "title"}
    assert chosen(tmp_path, format="beir") == ("beir", [name])
    for uri in (tmp_path, tmp_path / name):
        (found,) = documents(uri, format="beir", columns=columns)
        assert (found["doc_id"], found["title"], found["text"]) == ("d1", "T", "é")
