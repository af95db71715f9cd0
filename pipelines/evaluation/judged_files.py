"""Lines of a text file on this machine or anywhere fsspec reads, compressed or not."""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import fsspec

from actors.errors import SourceError
from pipelines.config_sections import absolute_uri
from pipelines.retries import fetched
from pipelines.storage_faults import FAULTS, fault_of

Options = Mapping[str, Any]
"""Of a store: what fsspec is given (keys, endpoint)."""


def numbered_lines(uri: str, storage_options: Options | None = None) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of each line that is not blank.

    Decompressed by extension (.gz, .bz2, .zst); UTF-8, a byte order mark is no part of it.

    Raises:
        SourceError: not there, not readable, not UTF-8.
    """
    content = _content(uri, storage_options or {}).removeprefix(codecs.BOM_UTF8)
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            text = line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{uri}, line {number}: expected UTF-8, found {error.reason} at byte {error.start}."
            ) from None
        if text.strip():
            yield number, text


def _content(uri: str, options: Options) -> bytes:
    """All of it: queries and judgements are small beside their corpus."""
    place = absolute_uri(uri)

    def read() -> bytes:
        with fsspec.open(place, "rb", compression="infer", **options) as file:
            return bytes(file.read())

    try:
        return fetched(read)
    except FileNotFoundError:
        raise SourceError(f"{uri}: expected a file, found none.", "Check the path.") from None
    except (ValueError, ImportError) as error:
        raise SourceError(f"{uri}: cannot be read ({error}).") from None
    except (EOFError, zlib.error) as error:
        raise SourceError(f"{uri}: expected whole compressed data, found {error}.") from None
    except Exception as error:
        fault = fault_of(error)
        if fault is None:
            raise
        what, remedy = FAULTS[fault]
        raise SourceError(
            f"{uri}: expected a readable file, found {what} ({error!s:.160}).", remedy
        ) from error
