"""Which format files are of, and which of them it takes."""

from __future__ import annotations

import gzip
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import column, documents, place, source_of

from actors.errors import SourceError
from pipelines.source.formats.registry import FORMATS, extension_of

__all__ = ["place"]


def parquet():
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": ["p"], "text": ["x"]}), sink)
    return sink.getvalue()


CONTENT = {
    "parquet": parquet(),
    "jsonl": b'{"id": "j", "text": "x"}\n',
    "csv": b"id,text\nc,x\n",
    "tsv": b"id\ttext\nt,x\n",
    "text": b"plain text\n",
    "wikiextractor": b'<doc id="w" url="u" title="t">\nt\n\nx\n</doc>\n',
}


def fill(folder, names):
    """Files by name, each with what its name or what it stands for says."""
    for name, content in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(CONTENT.get(content, content))
    return folder


def chosen(uri, **how):
    listing = source_of(uri, **how).list_files()
    return listing.format, [listing.name_of(file) for file in listing.files]


@pytest.mark.parametrize(
    ("path", "extension"),
    [
        ("a.jsonl", ".jsonl"),
        ("a.json.GZ", ".json"),
        ("a.b.CSV", ".csv"),
        ("deep.csv/a", ""),
        ("a.gz", ""),
        ("wiki_00.bz2", ""),
        (".txt.zst", ".txt"),
        ("https://host/a.csv?x=b.jsonl", ".csv"),
    ],
)
def test_extension_is_the_last_that_is_no_compressions(path, extension):
    assert extension_of(path) == extension


@pytest.mark.parametrize("name", [n for n in CONTENT if n != "wikiextractor"])
def test_folder_is_of_the_format_of_its_extensions(tmp_path, name):
    names = {f"f{i}{end}": name for i, end in enumerate(FORMATS[name].extensions)}
    fill(tmp_path, names | {"notes.xyz": b"?", "README": b"?"})
    assert chosen(tmp_path) == (name, sorted(names))


@pytest.mark.parametrize("records", ["parquet", "jsonl", "csv", "tsv"])
def test_folder_with_a_readme_beside_records_is_of_the_records(tmp_path, records):
    name = f"a{FORMATS[records].extensions[0]}"
    fill(tmp_path, {name: records, "README.md": b"# About", "LICENSE.txt": b"MIT", "x.bin": b""})
    assert chosen(tmp_path) == (records, [name])


def test_folder_of_several_formats_is_refused_naming_them(tmp_path):
    fill(tmp_path, {"a.csv": "csv", "b.csv.gz": b"", "deep/c.jsonl": "jsonl", "README.md": b""})
    with pytest.raises(SourceError, match=r"one format at .*, found 2 csv and 1 jsonl") as caught:
        chosen(tmp_path)
    assert "source.format" in caught.value.remedy
    assert chosen(tmp_path, format="jsonl") == ("jsonl", ["deep/c.jsonl"])
    assert chosen(tmp_path / "*.csv*") == ("csv", ["a.csv", "b.csv.gz"])


def test_folder_without_files_of_the_named_format_is_refused(tmp_path):
    fill(tmp_path, {"a.csv": "csv"})
    with pytest.raises(SourceError, match=r"expected jsonl files \(\.jsonl, .*among 1 files"):
        chosen(tmp_path, format="jsonl")


def test_named_file_is_of_the_named_format_whatever_its_extension(tmp_path):
    fill(tmp_path, {"data.csv": "jsonl", "other.csv": "jsonl", "x.csv": "csv"})
    assert chosen(tmp_path / "data.csv", format="jsonl") == ("jsonl", ["data.csv"])
    assert chosen(tmp_path / "*a*.csv", format="jsonl") == ("jsonl", ["data.csv"])
    assert column(documents(tmp_path / "data.csv", format="jsonl")) == ["x"]


@pytest.mark.parametrize(
    ("name", "before"),
    [("parquet", b"")]
    + [(n, b) for n in ("jsonl", "wikiextractor") for b in (b"", b"\xef\xbb\xbf", b"\n  ")],
)
def test_file_without_a_known_extension_is_known_by_its_beginning(place, name, before):
    root, options, put = place
    put("corpus.data", before + CONTENT[name])
    source = source_of(f"{root}/corpus.data", storage_options=options)
    assert source.list_files().format == name


def test_compressed_file_without_another_extension_is_known_by_its_beginning(tmp_path):
    fill(tmp_path, {"corpus.gz": gzip.compress(CONTENT["jsonl"])})
    assert chosen(tmp_path / "corpus.gz") == ("jsonl", ["corpus.gz"])
    assert column(documents(tmp_path / "corpus.gz"), "doc_id") == ["j"]


def test_folder_is_known_by_its_first_file_that_has_a_beginning(tmp_path):
    names = {"AA/wiki_00": b"", "AA/wiki_01": b"\n", "AA/wiki_02": "wikiextractor"}
    fill(tmp_path, names)
    assert chosen(tmp_path) == ("wikiextractor", list(names))


@pytest.mark.parametrize("content", [b"", b"who knows", b"\x00\x01", b"\x1f\x8bno gzip"])
@pytest.mark.parametrize("name", ["corpus", "corpus.gz"])
def test_file_of_no_known_format_is_refused_naming_the_formats(tmp_path, name, content):
    fill(tmp_path, {name: content})
    with pytest.raises(SourceError, match=rf"a known format at .*, found .*{name}\.") as caught:
        chosen(tmp_path / name)
    for known in FORMATS:
        assert known in caught.value.remedy


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
    fill(
        tmp_path,
        {name: content, "queries.jsonl": b'{"_id": "q", "text": "?"}\n', "qrels/test.tsv": b"q\n"}
        | {"my-corpus.jsonl": b"?", "README.md": b"?"},
    )
    columns = {"id": "_id", "text": "text", "title": "title"}
    assert chosen(tmp_path, format="beir") == ("beir", [name])
    (found,) = documents(tmp_path, format="beir", columns=columns)
    assert (found["doc_id"], found["title"], found["text"]) == ("d1", "T", "é")
    (found,) = documents(tmp_path / name, format="beir", columns=columns)
    assert found["doc_id"] == "d1"


def test_beir_folder_without_a_corpus_is_refused_naming_the_file(tmp_path):
    fill(tmp_path, {"queries.jsonl": b"{}\n"})
    with pytest.raises(SourceError, match=r"expected beir files \(corpus\.jsonl\) at"):
        chosen(tmp_path, format="beir")
