"""Reads whole files of plain text (one document each), and of WikiExtractor's <doc> elements."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipelines.source.formats.base import Access, RecordFiles, SourceRow, derived_id, is_damage
from pipelines.source.units import FileRange, SourceFile

_DOC = re.compile(r"<doc( \w+=\".*\")>$")
_ATTRIBUTE = re.compile(r" (\w+)=\"(.*?)\"(?= \w+=\"|$)")
_ESCAPED = {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&#x27;": "'", "&#39;": "'", "&amp;": "&"}


class TextFiles(RecordFiles):
    """Plain text: one document per file, whose id is the name relative to the location."""

    def _pieces(self, access: Access, file: SourceFile, name: str) -> list[FileRange]:
        return [FileRange(file, name, 0, file.size, documents=1)]

    def _records(self, access: Access, piece: FileRange) -> Iterator[SourceRow]:
        """Yield the one document, or a fault if the file is damaged; other files are unaffected."""
        with access.open_stream(piece.file) as stream:
            try:
                text = stream.read().decode("utf-8-sig", "surrogateescape")
                record = SourceRow(piece.name, text)
            except OSError as error:
                if not is_damage(error):
                    raise
                record = SourceRow(piece.name, fault=("bad_record", f"damaged: {error!s:.100}"))
        yield record


class WikiExtractorFiles(RecordFiles):
    """`<doc id="12" url="..." title="...">`, the text, `</doc>`.

    The attributes are the columns. The title, which WikiExtractor repeats as the first line, is
    removed from the text. Escapes (&lt; &gt; &amp; and quotes) are resolved.
    """

    def _fields(self, access: Access, piece: FileRange) -> list[str] | None:
        attributes = next((a for a, _, _ in self._elements(access, piece) if a), None)
        return None if attributes is None else [*attributes, self._columns.text]

    def _records(self, access: Access, piece: FileRange) -> Iterator[SourceRow]:
        columns = self._columns
        elements = self._elements(access, piece)
        for position, (attributes, text, fault) in enumerate(elements):
            doc_id = attributes.get(columns.id) if columns.id else derived_id(piece, position)
            if fault:
                yield SourceRow(doc_id, fault=("bad_record", fault))
                continue
            title = attributes.get("title", "")
            first, _, rest = text.partition("\n")
            if title and first.strip() == title.strip() and (not rest or rest.startswith("\n")):
                text = rest.lstrip("\n")
            yield SourceRow(
                doc_id,
                text,
                attributes.get(columns.title) if columns.title else None,
                tuple(attributes.get(name) for name in columns.copied),
            )

    def _elements(
        self, access: Access, piece: FileRange
    ) -> Iterator[tuple[dict[str, str], str, str]]:
        """Yield (attributes, text, fault or "") for each element and each text outside of one."""
        attributes: dict[str, str] = {}
        body: list[str] = []
        inside, number, since = False, 0, 0
        with access.open_stream(piece.file) as stream:
            for number, raw in enumerate(stream, 1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")
                if line.endswith("\r\n"):
                    line = f"{line[:-2]}\n"
                opening = _DOC.match(line.rstrip())
                if opening:
                    if inside or body:
                        yield attributes, "", _outside(inside, since)
                    found = _ATTRIBUTE.findall(opening[1])
                    attributes = {name: _unescape(value) for name, value in found}
                    inside, body, since = True, [], number
                elif inside and line.rstrip() == "</doc>":
                    yield attributes, _unescape("".join(body)).rstrip("\n"), ""
                    attributes, inside, body = {}, False, []
                elif inside or line.strip():
                    since = since if inside or body else number
                    body.append(line)
        if inside or body:
            yield attributes, "", _outside(inside, since)


def _outside(inside: bool, line: int) -> str:
    return f"line {line}: expected </doc>" if inside else f"line {line}: text outside of <doc>"


def _unescape(text: str) -> str:
    """Invert html.escape; other entities belong to the text and stay."""
    return re.sub("&lt;|&gt;|&quot;|&#x27;|&#39;|&amp;", lambda m: _ESCAPED[m[0]], text)
