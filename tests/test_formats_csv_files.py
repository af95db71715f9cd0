"""CSV and TSV: real bytes in, documents out."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reading import COMPRESS, column, documents, ids_before_the_break, place, source_of

from actors.errors import SourceError, UnreadableUnitError

__all__ = ["place"]

HEADER = ["id", "text", "title"]


def as_csv(rows, **how):
    file = io.StringIO(newline="")
    csv.writer(file, **how).writerows(rows)
    return file.getvalue().encode()


def read(tmp_path, content, name="a.csv", **how):
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(content)
    return documents(tmp_path / name, **how)


def outcomes(rows):
    return [(row["doc_id"], row.get("fault") or row["text"]) for row in rows]


ROWS = [[f"d{i}", f'text {i},\n\n"of" two lines', f"t{i}"] for i in range(300)]


@pytest.mark.parametrize("compression", COMPRESS)
def test_csv_in_every_store_gives_its_documents(place, compression):
    root, options, put = place
    put(f"a.csv{compression}", COMPRESS[compression](as_csv([HEADER, *ROWS])))
    rows = documents(
        f"{root}/a.csv{compression}", columns={"title": "title"}, storage_options=options
    )
    assert [[r["doc_id"], r["text"], r["title"]] for r in rows] == ROWS


@settings(deadline=None, max_examples=150)
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=8),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
@example(texts=['"', '""', '","', "\n", "\r", "\r\n", "\0"], delimiter=",", end="\n", quoting=0)
def test_csv_of_any_text_round_trips(texts, delimiter, end, quoting):
    rows = [["id", "text", "m"], *([str(i), text, text] for i, text in enumerate(texts))]
    how = {"delimiter": delimiter, "lineterminator": end, "quoting": quoting}
    if quoting == csv.QUOTE_MINIMAL:  # csv.writer does not quote a carriage return before "\n"
        rows = [[field.replace("\r", " ") for field in row] for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        path.write_bytes(as_csv(rows, **how))
        found = documents(path, columns={"metadata": ["m"]}, csv={"delimiter": delimiter})
    assert [[row["doc_id"], row["text"], row["m"]] for row in found] == rows[1:]
    assert not any("fault" in row for row in found)


@pytest.mark.parametrize("compression", COMPRESS)
def test_csv_ids_from_place_are_those_of_the_plain_file(tmp_path, compression):
    content = as_csv([HEADER, *ROWS[:200]])
    path = tmp_path / f"a.csv{compression}"
    path.write_bytes(COMPRESS[compression](content))
    rows = documents(path, columns={"id": None})
    assert column(rows, "doc_id") == [f"a.csv{compression}:{i}" for i in range(200)]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfid,text\na,x\nb,y\n",
        b'\xef\xbb\xbf"id","text"\r\n"a","x"\r\n"b","y"\r\n',
        b"id,text\r\na,x\r\nb,y",
        b"id,text\ra,x\rb,y\r",
        b"\n\nid,text\n\na,x\n\n\nb,y\n\n",
        b'text,"id",more\nx,a,1\ny,b,2\n',
    ],
    ids=["bom", "bom quoted", "crlf", "cr", "blank lines", "other order"],
)
def test_csv_however_written_gives_its_documents(tmp_path, content):
    assert outcomes(read(tmp_path, content)) == [("a", "x"), ("b", "y")]


def test_tsv_is_separated_by_tabs(tmp_path):
    rows = read(tmp_path, 'id\ttext\na\tx, "y"\nb\t"tab\there"\n', "a.tsv")
    assert outcomes(rows) == [("a", 'x, "y"'), ("b", "tab\there")]


def test_tsv_without_quotes_takes_them_as_they_are(tmp_path):
    rows = read(tmp_path, 'id\ttext\na\t"x\nb\ty"\n', "a.tab", csv={"quote": None})
    assert outcomes(rows) == [("a", '"x'), ("b", 'y"')]


def test_csv_with_other_characters_is_read_as_configured(tmp_path):
    how = {"csv": {"delimiter": ";", "quote": "'"}}
    rows = read(tmp_path, "id;text\na;'x;'' \"y\"'\n", **how)
    assert outcomes(rows) == [("a", 'x;\' "y"')]


def test_csv_field_of_a_whole_book_is_one_document(tmp_path):
    """csv's own limit is 131,072 characters."""
    book = "a word, " * 100_000
    rows = read(tmp_path, as_csv([HEADER, ["a", book, "t"], ["b", "y", "t"]]))
    assert column(rows) == [book, "y"]


def test_csv_control_characters_are_text(tmp_path):
    content = as_csv([HEADER, ["a", "x\0\a\x1b[0m\x85\u2028\x0b\x0cy", "t"]])
    assert column(read(tmp_path, content)) == ["x\0\a\x1b[0m\x85\u2028\x0b\x0cy"]


def test_csv_quote_that_is_never_closed_loses_its_own_record_only(tmp_path):
    content = 'id,text\na,x\nb,"never closed\nc,z\n\nd,"two\nlines"\ne,v\n'
    rows = read(tmp_path, content)
    assert outcomes(rows) == [
        ("a", "x"),
        (None, "bad_record"),
        ("c", "z"),
        ("d", "two\nlines"),
        ("e", "v"),
    ]
    assert rows[1]["detail"].startswith("line 3: ")


@pytest.mark.parametrize("line", ['b,"x" y', 'b,"never', '"b,x'])
def test_csv_bad_quotes_on_the_last_line_lose_nothing_else(tmp_path, line):
    rows = read(tmp_path, f"id,text\na,x\n{line}\n")
    assert outcomes(rows) == [("a", "x"), (None, "bad_record")]


def test_csv_many_quotes_never_closed_lose_their_own_records_only(tmp_path):
    lines = [f'{i},"open {i}' if i % 3 == 0 else f"{i},x" for i in range(300)]
    rows = read(tmp_path, "\n".join(["id,text", *lines]) + "\n")
    expected = [(None, "bad_record") if i % 3 == 0 else (str(i), "x") for i in range(300)]
    assert outcomes(rows) == expected


def test_csv_quote_that_is_never_closed_is_looked_for_in_a_bounded_part_of_the_file(tmp_path):
    limit = csv.field_size_limit(1000)
    try:
        rows = read(tmp_path, 'id,text\n0,"open\n' + "".join(f"{i},x\n" for i in range(1, 999)))
    finally:
        csv.field_size_limit(limit)
    assert [row.get("fault") for row in rows] == ["bad_record"] + [None] * 998
    assert "limit" in rows[0]["detail"]
    assert limit > 100_000_000


@pytest.mark.parametrize(
    ("line", "found"), [("b", 1), ("b,y,t,more", 4), ("b,y", 2), ("b,y,t,", 4)]
)
def test_csv_wrong_number_of_fields_is_a_fault_of_its_own(tmp_path, line, found):
    rows = read(tmp_path, f"id,text,title\na,x,t\n{line}\nc,z,t\n")
    assert outcomes(rows) == [("a", "x"), (None, "bad_record"), ("c", "z")]
    assert rows[1]["detail"] == f"line 3: expected 3 fields, found {found}"


def test_csv_faults_name_the_last_line_of_their_record(tmp_path):
    rows = read(tmp_path, 'id,text\na,"1\n2\n3"\nb\n\n"c\n\n"\n')
    assert [row.get("detail", "")[:7] for row in rows] == ["", "line 5:", "line 9:"]


def test_csv_undecodable_bytes_are_a_fault_where_they_are_used(tmp_path):
    content = b"id,text,title\na,caf\xe9,t\n\xe9,y,t\nc,z,\xe9\nd,v,t\n"
    assert [fault for _, fault in outcomes(read(tmp_path, content))] == [
        "bad_encoding",
        "bad_encoding",
        "z",
        "v",
    ]
    with_title = read(tmp_path, content, columns={"title": "title"})
    assert [row.get("fault") for row in with_title] == ["bad_encoding"] * 3 + [None]
    assert column(with_title, "doc_id") == ["a", None, "c", "d"]


def test_csv_empty_fields_are_empty_strings(tmp_path):
    [row] = read(tmp_path, "id,text,title,m\n,,,\n", columns={"title": "title", "metadata": ["m"]})
    assert row == {"doc_id": "", "text": "", "title": "", "m": ""}


def test_csv_one_column_has_blank_lines_between_records(tmp_path):
    assert column(read(tmp_path, "text\nx\n\ny\n", columns={"id": None})) == ["x", "y"]


def test_csv_without_records_has_no_documents_beside_others(tmp_path):
    (tmp_path / "header.csv").write_bytes(b"id,text\n")
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "blank.csv").write_bytes(b"\n\n")
    assert outcomes(read(tmp_path, "id,text\na,x\n")) == [("a", "x")]
    assert outcomes(documents(tmp_path)) == [("a", "x")]


def test_csv_files_may_order_their_columns_differently(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"id,text\na,x\n")
    (tmp_path / "b.csv").write_bytes(b"text,more,id\ny,,b\n")
    assert outcomes(documents(tmp_path)) == [("a", "x"), ("b", "y")]


def test_csv_absent_column_is_refused_naming_those_present(tmp_path):
    message = r"source\.columns\.text: expected a column 'body' in .*a\.csv, found id, text"
    with pytest.raises(SourceError, match=message):
        read(tmp_path, "id,text\na,x\n", columns={"text": "body"})


def test_csv_name_of_two_columns_is_refused_where_it_is_used(tmp_path):
    content = "id,text,text,x,x\na,b,c,d,e\n"
    with pytest.raises(SourceError, match=r"a\.csv: expected one column 'text', found several"):
        read(tmp_path, content)
    assert outcomes(read(tmp_path, "id,text,x,x\na,b,c,d\n")) == [("a", "b")]


def test_csv_header_that_does_not_parse_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"a\.csv: expected a header line"):
        read(tmp_path, 'id,"text\na,x\n')


def test_csv_truncated_compressed_gives_what_comes_before_and_then_fails(tmp_path):
    rows = [[str(i), f"{i * 7919 % 10007} words {i}" * 20] for i in range(5000)]
    path = tmp_path / "a.csv.gz"
    path.write_bytes(COMPRESS[".gz"](as_csv([["id", "text"], *rows]))[:-20])
    source = source_of(path)
    [unit] = source.units(source.list_files())
    got, message = ids_before_the_break(source, unit)
    assert "a.csv.gz: cannot be read (Truncated" in message
    assert len(got) > 4800
    assert got == [row[0] for row in rows[: len(got)]]


def test_csv_garbage_with_a_gz_name_is_an_unreadable_unit(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"id,text\na,x\n")
    (tmp_path / "b.csv.gz").write_bytes(b"id,text\nb,y\n")
    source = source_of(tmp_path)
    good, bad = source.units(source.list_files())
    assert [batch.table.num_rows for batch in source.read(good)] == [1]
    with pytest.raises(UnreadableUnitError, match=r"b\.csv\.gz"):
        list(source.read(bad))
