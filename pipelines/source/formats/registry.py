"""The supported formats, and the detection of the format of a list of files."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from actors.errors import SourceError
from pipelines.config.sections import SourceConfig
from pipelines.source.formats.base import COMPRESSIONS, Access, Format, is_damage
from pipelines.source.formats.csv_files import CsvFiles
from pipelines.source.formats.line_files import JsonLines, TextLines
from pipelines.source.formats.parquet_files import ParquetFiles
from pipelines.source.formats.text_files import TextFiles, WikiExtractorFiles
from pipelines.source.listing import name_in
from pipelines.source.units import SourceFile


@dataclass(frozen=True)
class FormatRecord:
    """A format: its reader, and the file names it takes from a folder."""

    make: Callable[[SourceConfig], Format]
    extensions: tuple[str, ...] = ()
    """The extensions of the files that the format takes from a folder; empty for every file."""
    stem: str | None = None
    """The name that those files must have before the extension; None for any name."""
    files_in_unit: int = 1
    """Files per unit. Short text files share a unit, because every unit costs a commit."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the endings of the file names that the format takes from a folder."""
        return tuple(f"{self.stem or ''}{extension}" for extension in self.extensions)

    def takes(self, path: str) -> bool:
        """Whether the format takes a file that was found in a folder."""
        if not self.extensions:
            return True
        extension = extension_of(path)
        stem = plain_name(path).removesuffix(extension)
        return extension in self.extensions and self.stem in (None, stem)


FORMATS: dict[str, FormatRecord] = {
    "parquet": FormatRecord(ParquetFiles, (".parquet", ".pq")),
    "jsonl": FormatRecord(JsonLines, (".jsonl", ".ndjson", ".json")),
    # BEIR keeps queries.jsonl and qrels/ in the same folder; only corpus.jsonl holds documents.
    "beir": FormatRecord(JsonLines, (".jsonl",), stem="corpus"),
    "csv": FormatRecord(lambda config: CsvFiles(config, ","), (".csv",)),
    "tsv": FormatRecord(lambda config: CsvFiles(config, "\t"), (".tsv", ".tab")),
    "text": FormatRecord(TextFiles, (".txt", ".text", ".md"), files_in_unit=1000),
    "lines": FormatRecord(TextLines, (".txt", ".text")),
    "wikiextractor": FormatRecord(WikiExtractorFiles),
}
# Detection ignores text files beside these formats: they are usually a README.
_RECORDS = ("parquet", "jsonl", "csv", "tsv")
_SNIFFED = 10
_BEGINNINGS = {b"PAR1": "parquet", b"<doc ": "wikiextractor", b"{": "jsonl"}


def plain_name(path: str) -> str:
    """Return the file's name in lower case, without the extension of a compression."""
    name = name_in(path).lower()
    for end in COMPRESSIONS:
        name = name.removesuffix(end)
    return name


def extension_of(path: str) -> str:
    """Return the file's extension in lower case, ignoring the extension of a compression."""
    name = plain_name(path)
    return f".{name.rpartition('.')[2]}" if "." in name else ""


def choose_format(
    config: SourceConfig, access: Access, files: Mapping[SourceFile, bool]
) -> tuple[str, list[SourceFile]]:
    """Return the format of the files, and the files that the format takes.

    `files`: each file, and whether it was found in a folder. From a folder, only files with the
    format's extensions are taken; a file that the configuration names is always taken.

    Raises:
        SourceError: the files have several formats, or none of them has a known format.
    """
    name: str = config.format
    if name == "auto":
        name = _found_out(config, access, list(files))
    record = FORMATS[name]
    taken = [
        file for file, from_folder in files.items() if not from_folder or record.takes(file.path)
    ]
    if not taken:
        raise SourceError(
            f"source.uri: expected {name} files ({', '.join(record.names)}) at "
            f"{config.described}, found none among {len(files)} files."
        )
    return name, taken


def _found_out(config: SourceConfig, access: Access, files: Sequence[SourceFile]) -> str:
    by_extension = {e: name for name in (*_RECORDS, "text") for e in FORMATS[name].extensions}
    known = [by_extension.get(extension_of(file.path)) for file in files]
    counts = Counter(name for name in known if name in _RECORDS)
    if len(counts) > 1:
        found = " and ".join(f"{n} {name}" for name, n in counts.most_common())
        raise SourceError(
            f"source.uri: expected files of one format at {config.described}, found {found}.",
            "Name the format, as in source.format=jsonl, or narrow the glob.",
        )
    if counts:
        return next(iter(counts))
    unknown = [file for file, name in zip(files, known, strict=True) if name is None]
    beginnings = (_beginning(access, file) for file in unknown[:_SNIFFED])
    first = next(filter(None, beginnings), b"")  # of the first file that is not empty
    for start, name in _BEGINNINGS.items():
        if first.startswith(start):
            return name
    if "text" in known:
        return "text"
    raise SourceError(
        f"source.uri: expected files of a known format at {config.described}, found "
        f"{files[0].path}.",
        f"Name the format with source.format, one of {', '.join(FORMATS)}.",
    )


def _beginning(access: Access, file: SourceFile) -> bytes:
    with access.open_stream(file) as stream:
        try:
            return stream.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
        except OSError as error:
            if not is_damage(error):
                raise
            return b""  # not compressed as its name says
