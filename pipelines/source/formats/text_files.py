"""Plain text with a document a file, and WikiExtractor's files of <doc> elements; read whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

import pyarrow as pa

from pipelines.config.sections import SourceConfig
from pipelines.source.formats.base import (
    Access,
    DocumentBatch,
    FileFacts,
    SourceRow,
    derived_id,
    is_damage,
    to_batch,
    to_batches,
)
from pipelines.source.formats.line_files import text_fields
from pipelines.source.units import FileRange, SourceFile

_DOC = re.compile(r"<doc( \w+=\".*\")>$")
_ATTRIBUTE = re.compile(r" (\w+)=\"(.*?)\"(?= \w+=\"|$)")
_ESCAPED = {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&#x27;": "'", "&#39;": "'", "&amp;": "&"}


class TextFiles:
    """A document a file; its id is the file's name, relative to the configured location."""

    def __init__(self, config: SourceConfig) -> None:
        self._config = config

    def inspect(self, access: Access, file: SourceFile, name: str) -> FileFacts:
        """One document."""
        return FileFacts(
            [FileRange(file, name, 0, file.size, documents=1)], text_fields(self._config)
        )

    def read(self, access: Access, piece: FileRange) -> Iterator[DocumentBatch]:
        """The one document; where it does not decompress, a fault that spares its neighbours."""
        metadata = self._config.columns.copied
        with access.open_stream(piece.file) as stream:
            try:
                text = stream.read().decode("utf-8-sig", "surrogateescape")
                record = SourceRow(piece.name, text, None, (None,) * len(metadata))
            except OSError as error:
                if not is_damage(error):
                    raise
                record = SourceRow(piece.name, fault=("bad_record", f"damaged: {error!s:.100}"))
        yield to_batch([record], metadata)

    def no_documents(self, access: Access, piece: FileRange) -> DocumentBatch:
        """Strings, all of them."""
        return to_batch([], self._config.columns.copied)


class WikiExtractorFiles:
    """`<doc id="12" url="..." title="...">`, the text, `</doc>`.

    The attributes are the columns. The title, which WikiExtractor repeats as the first line, is no
    part of the text, and what it escaped (&lt; &gt; &amp; and quotes) is as it was.
    """

    def __init__(self, config: SourceConfig) -> None:
        self._config = config

    def inspect(self, access: Access, file: SourceFile, name: str) -> FileFacts:
        """One piece; the attributes of the first element."""
        piece = FileRange(file, name, 0, file.size)
        attributes: dict[str, str] | None = None
        with suppress(OSError):  # damaged: for the run to find, and to name
            attributes = next((a for a, _, _ in self._elements(access, piece) if a), None)
        if attributes is None:
            return FileFacts([piece], None)
        names = [*attributes, self._config.columns.text]
        return FileFacts([piece], dict.fromkeys(names, pa.string()))

    def read(self, access: Access, piece: FileRange) -> Iterator[DocumentBatch]:
        """One document an element."""
        yield from to_batches(self._records(access, piece), self._config.columns.copied)

    def no_documents(self, access: Access, piece: FileRange) -> DocumentBatch:
        """Strings, all of them."""
        return to_batch([], self._config.columns.copied)

    def _records(self, access: Access, piece: FileRange) -> Iterator[SourceRow]:
        columns = self._config.columns
        elements = self._elements(access, piece)
        for position, (attributes, text, fault) in enumerate(elements):
            doc_id = attributes.get(columns.id) if columns.id else None
            if columns.id is None:
                doc_id = derived_id(piece, position)
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
        """(attributes, text, what is wrong with it) of each element, and of text outside of any."""
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
    """The inverse of html.escape, and no more: other entities are the text's own."""
    return re.sub("&lt;|&gt;|&quot;|&#x27;|&#39;|&amp;", lambda m: _ESCAPED[m[0]], text)
