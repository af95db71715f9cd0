"""The formats there are, and which one a list of files is of."""

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
    """One format."""

    make: Callable[[SourceConfig], Format]
    extensions: tuple[str, ...] = ()
    """Of the files it takes from a folder; none: every file."""
    stem: str | None = None
    """What those files are called before the extension; None: anything."""
    files_in_unit: int = 1
    """Files that make one unit: a slice for every short text file would be a commit for each."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the names of those files end with."""
        return tuple(f"{self.stem or ''}{extension}" for extension in self.extensions)

    def takes(self, path: str) -> bool:
        """Whether a file found in a folder is one of its."""
        if not self.extensions:
            return True
        extension = extension_of(path)
        stem = plain_name(path).removesuffix(extension)
        return extension in self.extensions and self.stem in (None, stem)


FORMATS: dict[str, FormatRecord] = {
    "parquet": FormatRecord(ParquetFiles, (".parquet", ".pq")),
    "jsonl": FormatRecord(JsonLines, (".jsonl", ".ndjson", ".json")),
    # Of BEIR's folder only the documents: queries.jsonl and qrels/ lie beside them.
    "beir": FormatRecord(JsonLines, (".jsonl",), stem="corpus"),
    "csv": FormatRecord(lambda config: CsvFiles(config, ","), (".csv",)),
    "tsv": FormatRecord(lambda config: CsvFiles(config, "\t"), (".tsv", ".tab")),
    "text": FormatRecord(TextFiles, (".txt", ".text", ".md"), files_in_unit=1000),
    "lines": FormatRecord(TextLines, (".txt", ".text")),
    "wikiextractor": FormatRecord(WikiExtractorFiles),
}
# Text beside files of records is a README; a format without extensions must be named or found out.
_RECORDS = ("parquet", "jsonl", "csv", "tsv")
_SNIFFED = 10
_BEGINNINGS = {b"PAR1": "parquet", b"<doc ": "wikiextractor", b"{": "jsonl"}


def plain_name(path: str) -> str:
    """The file's name in lower case, without a compression's extension."""
    name = name_in(path).lower()
    for end in COMPRESSIONS:
        name = name.removesuffix(end)
    return name


def extension_of(path: str) -> str:
    """The last one that is no compression's, in lower case."""
    name = plain_name(path)
    return f".{name.rpartition('.')[2]}" if "." in name else ""


def choose_format(
    config: SourceConfig, access: Access, files: Mapping[SourceFile, bool]
) -> tuple[str, list[SourceFile]]:
    """The one format of the files, and those of them it takes.

    `files`: each file, and whether a folder brought it (of which only files with the format's
    extensions are taken) or the configuration names it, itself or by a glob.

    Raises:
        SourceError: files of several formats, or none that is known.
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
            f"{config.described}, found none of them among {len(files)} files."
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
            "Name it, as in source.format=jsonl, or narrow the glob.",
        )
    if counts:
        return next(iter(counts))
    unknown = [file for file, name in zip(files, known, strict=True) if name is None]
    beginnings = (_beginning(access, file) for file in unknown[:_SNIFFED])
    first = next(filter(None, beginnings), b"")  # of the first that has one
    for start, name in _BEGINNINGS.items():
        if first.startswith(start):
            return name
    if "text" in known:
        return "text"
    raise SourceError(
        f"source.uri: expected files of a known format at {config.described}, found "
        f"{files[0].path}.",
        f"Name it with source.format, one of {', '.join(FORMATS)}.",
    )


def _beginning(access: Access, file: SourceFile) -> bytes:
    with access.open_stream(file) as stream:
        try:
            return stream.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
        except OSError as error:
            if not is_damage(error):
                raise
            return b""  # not what its name says it is compressed with
