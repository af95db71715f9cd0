"""A document a file, and WikiExtractor's files: real bytes in, documents out."""

from __future__ import annotations

import errno
import html
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reading import COMPRESS, column, documents, ids_before_the_break, place, source_of

from actors.errors import SourceError

__all__ = ["place"]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# A document a file


def test_text_files_in_every_store_are_documents_named_by_their_paths(place):
    root, options, put = place
    put("b.txt", b"second\n\nfile\n")
    put("a.txt.gz", COMPRESS[".gz"](b"first"))
    put("deep/er/c.md", b"third")
    put("picture.png", b"\x89PNG")
    rows = documents(f"{root}/", storage_options=options)
    assert [(row["doc_id"], row["text"]) for row in rows] == [
        ("a.txt.gz", "first"),
        ("b.txt", "second\n\nfile\n"),
        ("deep/er/c.md", "third"),
    ]


def test_text_files_many_to_a_unit_are_read_in_any_range(tmp_path):
    for i in range(1205):
        write(tmp_path / f"{i:04}.txt", f"text {i}")
    source = source_of(tmp_path)
    first, second = source.units(source.list_files())
    assert (first.documents, second.documents) == (1000, 205)
    for unit, start, stop in ((first, 0, None), (first, 990, 995), (second, 204, None)):
        ids = [b.table["doc_id"][0].as_py() for b in source.read(unit, start, stop)]
        assert ids == [
            f"{i + 1000 * unit.number:04}.txt" for i in range(start, stop or unit.documents)
        ]


@pytest.mark.parametrize(
    ("content", "text", "fault"),
    [
        (b"", "", None),  # for whoever chunks to reject
        (b" \n", " \n", None),
        (b"\xef\xbb\xbfx\r\ny", "x\r\ny", None),
        (b"\0\x07\x1b[0m", "\0\x07\x1b[0m", None),
        (b"caf\xe9", None, "bad_encoding"),
        ("x".encode("utf-16"), None, "bad_encoding"),
    ],
)
def test_text_file_however_written_is_one_document(tmp_path, content, text, fault):
    write(tmp_path / "a.txt", content)
    write(tmp_path / "b.txt", b"good")
    odd, good = documents(tmp_path)
    assert (odd["doc_id"], odd["text"], odd.get("fault")) == ("a.txt", text, fault)
    assert good["text"] == "good"


@settings(deadline=None, max_examples=50)
@given(text=st.text(st.characters(codec="utf-8"), min_size=1))
def test_text_file_of_any_text_round_trips(text):
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "a.txt", text)
        write(Path(folder) / "b.txt.zst", COMPRESS[".zst"](text.encode()))
        assert column(documents(folder)) == [text.removeprefix("\ufeff")] * 2


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".zst"])
def test_text_file_that_is_damaged_is_a_fault_of_its_own(tmp_path, compression):
    """Hundreds of files are one unit: one that never decompresses must not be in their way."""
    write(tmp_path / "a.txt", b"good")
    write(tmp_path / f"b.txt{compression}", COMPRESS[compression](b"x" * 9999)[:-9])
    write(tmp_path / f"c.txt{compression}", b"never compressed")
    write(tmp_path / "d.txt", b"good")
    rows = documents(tmp_path)
    assert column(rows, "doc_id") == [
        "a.txt",
        f"b.txt{compression}",
        f"c.txt{compression}",
        "d.txt",
    ]
    assert [row.get("fault") for row in rows] == [None, "bad_record", "bad_record", None]
    assert rows[1]["detail"].startswith("damaged: ")


class FailingFile(io.RawIOBase):
    """Of a store that breaks off."""

    def readable(self):
        return True

    def readinto(self, _):
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("end", ["", ".gz"])
def test_text_file_that_the_store_does_not_give_is_named_among_those_of_its_unit(tmp_path, end):
    """It is no fault of the file: the next start tries again."""
    for name in ("a.txt", f"b.txt{end}", "c.txt"):
        write(tmp_path / name, COMPRESS[".gz" if "gz" in name else ""](b"good"))
    source = source_of(tmp_path)
    [unit] = source.units(source.list_files())
    real = source._access.fs.open

    def failing(path, *rest, **options):
        return FailingFile() if "b.txt" in path else real(path, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source._access.fs, "open", failing)
        got, message = ids_before_the_break(source, unit)
    assert got == ["a.txt"]
    assert f"/b.txt{end}: cannot be read (" in message
    assert "Input/output error" in message
    assert column(documents(tmp_path)) == ["good"] * 3


def test_text_files_have_no_other_columns(tmp_path):
    write(tmp_path / "a.txt", b"x")
    with pytest.raises(SourceError, match=r"source\.columns\.metadata\[0\]: .* 'url'"):
        documents(tmp_path, columns={"metadata": ["url"]})


# WikiExtractor


def doc(number, title, text, *, repeat=True, end="\n</doc>\n"):
    """As WikiExtractor 3 writes it: the title again, then the text, escaped."""
    first = f"{title}\n\n" if repeat else ""
    url = f"https://simple.wikipedia.org/wiki?curid={number}"
    body = html.escape(text, quote=False)
    return f'<doc id="{number}" url="{url}" title="{title}">\n{first}{body}\n{end}'


COLUMNS = {"title": "title", "metadata": ["url"]}


def read_wiki(tmp_path, content, **how):
    write(tmp_path / "wiki_00", content)
    return documents(tmp_path, columns=COLUMNS, **how)


def outcomes(rows):
    return [(row["doc_id"], row.get("fault") or row["text"]) for row in rows]


@pytest.mark.parametrize("compression", COMPRESS)
def test_wikiextractor_folders_are_read_in_order(tmp_path, compression):
    for folder in ("AA", "AB"):
        for n in range(3):
            number = 10 * (folder == "AB") + n
            content = doc(number, f"Title {number}", f"text {number}\n\nmore").encode()
            path = tmp_path / folder / f"wiki_{n:02}{compression}"
            write(path, COMPRESS[compression](content))
    rows = documents(tmp_path, columns=COLUMNS)
    assert rows == [
        {
            "doc_id": str(i),
            "text": f"text {i}\n\nmore",
            "title": f"Title {i}",
            "url": f"https://simple.wikipedia.org/wiki?curid={i}",
        }
        for i in (0, 1, 2, 10, 11, 12)
    ]


def test_wikiextractor_file_in_every_store_is_found_out(place):
    root, options, put = place
    put("wiki_00", (doc(1, "A", "x") + doc(2, "B", "y")).encode())
    rows = documents(f"{root}/wiki_00", storage_options=options)
    assert outcomes(rows) == [("1", "x"), ("2", "y")]


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1)


@settings(deadline=None, max_examples=150)
@given(title=TEXT, lines=st.lists(TEXT, min_size=1, max_size=5))
@example(title='a "b" c', lines=["</doc>", '<doc id="1">', "&lt;", "&amp;lt;", "&#x27;&nbsp;"])
@example(title="x", lines=["x", "x"])
@example(title='"', lines=['"'])
def test_wikiextractor_of_any_text_round_trips(title, lines):
    text = "\n".join(lines)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "wiki_00", doc(1, title, text) + doc(2, "after", "y"))
        rows = documents(path, columns={"title": "title"}, format="wikiextractor")
    assert outcomes(rows) == [("1", text), ("2", "y")]
    if "&" not in title:  # WikiExtractor leaves titles as they are in the dump: escaped
        assert rows[0]["title"] == title


@pytest.mark.parametrize(
    "title", ['The "Best" of', '"', '"" ""', "5 > 4 = x", "a=b", 'x="y"', "Ünïcode", "<b>"]
)
def test_wikiextractor_title_with_quotes_is_whole(tmp_path, title):
    [row] = read_wiki(tmp_path, doc(7, title, "text"))
    assert (row["doc_id"], row["title"], row["text"]) == ("7", title, "text")
    assert row["url"].endswith("curid=7")


def test_wikiextractor_entities_are_undone_once(tmp_path):
    body = "AT&amp;T\n\n&lt;b&gt; &amp;lt; &quot;q&quot; &#39; &#x27; &nbsp; &eacute; &"
    content = f'<doc id="1" url="u?a=1&amp;b=2" title="AT&amp;T">\n{body}\n</doc>\n'
    [row] = read_wiki(tmp_path, content)
    assert row == {
        "doc_id": "1",
        "text": "<b> &lt; \"q\" ' ' &nbsp; &eacute; &",
        "title": "AT&T",
        "url": "u?a=1&b=2",
    }


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("April\n\nApril is a month.\n", "April is a month."),
        ("April\n\n\nApril is a month.\n", "April is a month."),
        ("April is a month.\n", "April is a month."),
        ("April\nis a month.\n", "April\nis a month."),
        ("May\n\nApril\n", "May\n\nApril"),
        ("April\n", ""),
        ("April\n\n", ""),
        ("", ""),
    ],
)
def test_wikiextractor_title_repeated_as_first_line_is_left_out(tmp_path, body, text):
    [row] = read_wiki(tmp_path, f'<doc id="1" url="u" title="April">\n{body}</doc>\n')
    assert (row["text"], row.get("fault")) == (text, None)


def test_wikiextractor_text_outside_of_elements_is_a_fault_of_its_own(tmp_path):
    content = "stray\n\nlines\n" + doc(1, "A", "x") + "\n\n" + doc(2, "B", "y") + "end\n"
    rows = read_wiki(tmp_path, content, format="wikiextractor")
    bad = (None, "bad_record")
    assert outcomes(rows) == [bad, ("1", "x"), ("2", "y"), bad]
    assert rows[0]["detail"] == "line 1: text outside of <doc>"
    assert rows[3]["detail"] == f"line {content.count(chr(10))}: text outside of <doc>"


@pytest.mark.parametrize("followers", [0, 1])
def test_wikiextractor_missing_end_is_a_fault_of_its_element_only(tmp_path, followers):
    content = doc(1, "A", "x") + doc(2, "B", "y", end="") + doc(3, "C", "z") * followers
    rows = read_wiki(tmp_path, content)
    expected = [("1", "x"), ("2", "bad_record"), ("3", "z")]
    assert outcomes(rows) == expected[: 2 + followers]
    assert rows[1]["detail"] == "line 7: expected </doc>"


def test_wikiextractor_element_without_an_id_is_a_document_without_one(tmp_path):
    rows = read_wiki(tmp_path, doc(1, "A", "x") + '<doc url="u" title="B">\ny\n</doc>\n')
    assert outcomes(rows) == [("1", "x"), (None, "y")]


def test_wikiextractor_undecodable_bytes_are_a_fault_of_their_element(tmp_path):
    bad = doc(2, "B", "caf?").encode().replace(b"?", b"\xe9", 2)
    rows = read_wiki(tmp_path, doc(1, "A", "x").encode() + bad + doc(3, "C", "z").encode())
    assert [row.get("fault") for row in rows] == [None, "bad_encoding", None]


@pytest.mark.parametrize(
    "change", [lambda c: b"\xef\xbb\xbf" + c, lambda c: c.replace(b"\n", b"\r\n")]
)
def test_wikiextractor_with_a_byte_order_mark_or_carriage_returns_is_read(tmp_path, change):
    content = change((doc(1, "A", "x") + doc(2, "B", "y")).encode())
    rows = read_wiki(tmp_path, content)
    assert outcomes(rows) == [("1", "x"), ("2", "y")]
    assert column(rows, "title") == ["A", "B"]


def test_wikiextractor_ids_from_place_count_elements(tmp_path):
    write(tmp_path / "AA/wiki_00", "stray\n" + doc(1, "A", "x") + doc(2, "B", "y"))
    rows = documents(tmp_path, columns={"id": None}, format="wikiextractor")
    assert column(rows, "doc_id") == [f"AA/wiki_00:{i}" for i in range(3)]


def test_wikiextractor_absent_attribute_is_refused_naming_those_present(tmp_path):
    write(tmp_path / "wiki_00", doc(1, "A", "x"))
    with pytest.raises(SourceError, match=r"metadata\[0\]: .* 'lang' .*found id, url, title, text"):
        documents(tmp_path, columns={"metadata": ["lang"]})


def test_wikiextractor_truncated_compressed_gives_what_comes_before_and_then_fails(tmp_path):
    content = "".join(doc(i, f"T{i}", f"{i * 7919 % 10007} words {i}" * 20) for i in range(3000))
    write(tmp_path / "wiki_00.bz2", COMPRESS[".bz2"](content.encode())[:-10])
    write(tmp_path / "wiki_01.gz", COMPRESS[".gz"](content.encode())[:-10])
    source = source_of(tmp_path, format="wikiextractor")
    for unit, least in zip(source.units(source.list_files()), (1000, 2900), strict=True):
        got, message = ids_before_the_break(source, unit)
        assert "cannot be read (Truncated" in message
        assert got == [str(i) for i in range(len(got))]
        assert len(got) > least


def test_wikiextractor_empty_file_beside_others_has_no_documents(tmp_path):
    write(tmp_path / "AA/wiki_00", "")
    write(tmp_path / "AA/wiki_01", doc(1, "A", "x"))
    assert outcomes(documents(tmp_path)) == [("1", "x")]
