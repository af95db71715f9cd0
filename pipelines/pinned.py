"""Documents only of files that still are what the plan pinned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from actors.errors import EmbedError, SourceChangedError
from pipelines.formats.base import DocumentBatch
from pipelines.listing import SourceFile, describe_file, is_local, is_s3
from pipelines.retries import fetched
from pipelines.storage_faults import may_pass

_REMEDY = (
    "Restore it and run the same command again. Re-indexing takes it as it is at its next start; a "
    "first run starts over with --fresh."
)


def unchanged(
    fs: Any, file: SourceFile, batches: Iterator[DocumentBatch]
) -> Iterator[DocumentBatch]:
    """The batches read of a file, each given only when it still is that file after the reading.

    On S3 only the first is looked after, and the file again at the end: there the driver asks for
    the version it opened. Where the bytes make no sense: perhaps because they are another file's.

    Raises:
        SourceChangedError: it is another one now, or gone.
    """
    is_pinned, is_checked = is_s3(fs), False
    try:
        for number, batch in enumerate(batches):
            is_checked = number == 0 or not is_pinned
            if is_checked:
                _check(fs, file)
            yield batch
    except EmbedError:
        raise
    except Exception as error:
        if not may_pass(error):
            _check(fs, file)
        raise
    if not is_checked or is_local(fs):
        _check(fs, file)


def _check(fs: Any, file: SourceFile) -> None:
    try:
        found = fetched(lambda: describe_file(fs, file.path))
    except FileNotFoundError:
        raise SourceChangedError(
            f"{file.path}: expected the file the plan pinned, found none.", _REMEDY
        ) from None
    if found != file:
        raise SourceChangedError(
            f"{file.path}: changed since the run was planned "
            f"({file.size} bytes, {file.etag} -> {found.size} bytes, {found.etag}).",
            _REMEDY,
        )
