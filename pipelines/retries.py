"""Trying again when a store hiccups: an action, and the reads of a file that is open."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from pipelines.storage_faults import StoreFaultError, fault_of, may_pass

T = TypeVar("T")

# On top of the drivers' own retries (botocore and s3fs: five each; HTTP: none), which do not cover
# a 409. Against a store that never answers they take minutes; hence also a limit in seconds.
_STOP = stop_after_attempt(4) | stop_after_delay(120)
_WAIT = wait_random_exponential(multiplier=0.4, max=5)  # seconds; full jitter


class Run(Protocol):
    """Does an action, tries it again, and raises in the way of its owner."""

    def __call__(self, action: Callable[[], T], /) -> T:
        """What the action gives."""


def patiently(action: Callable[[], T]) -> T:
    """Do it, and again a few times while what it raises may pass."""
    again = retry_if_exception(may_pass)
    return Retrying(stop=_STOP, wait=_WAIT, retry=again, reraise=True)(action)


def fetched(action: Callable[[], T]) -> T:
    """The same; what it raises in the end is a StoreFaultError, but for a missing file.

    Raises:
        StoreFaultError: the store failed.
    """
    try:
        return patiently(action)
    except Exception as error:
        fault = fault_of(error)
        if fault is None:
            raise
        raise StoreFaultError(fault, str(error) or type(error).__name__) from error


class SteadyFile(io.RawIOBase):
    """A remote file open for reading whose requests are tried again.

    `stream`: it comes in one answer, of which what was read already comes again and is skipped.
    """

    def __init__(self, opener: Callable[[], Any], run: Run, *, stream: bool = False) -> None:
        self._opener, self._run, self._stream = opener, run, stream
        self._file: Any = None
        self._skip = self._at = 0
        self._file = run(opener)

    def read(self, size: int | None = -1) -> bytes:
        """As any file."""
        wanted = -1 if size is None else size
        data = self._run(lambda: self._read(wanted))
        self._at += len(data)
        return data

    def readall(self) -> bytes:
        """As any file."""
        return b"".join(iter(self.read, b""))

    def readinto(self, buffer: Any) -> int:
        """As any file."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """Unless it is a stream."""
        return not self._stream

    def seek(self, offset: int, whence: int = 0) -> int:
        """As any file."""
        self._file.seek(offset, whence)
        return self.tell()

    def tell(self) -> int:
        """As any file."""
        return self._at if self._stream else int(self._file.tell())

    def close(self) -> None:
        """As any file."""
        if self._file and not self.closed:
            self._file.close()
        super().close()

    def _read(self, size: int) -> bytes:
        try:
            self._file = self._file or self._opener()
            while self._skip:
                skipped = self._file.read(min(self._skip, 1 << 20))
                if not skipped:
                    raise ConnectionError(f"{self._skip:,} bytes less than a moment ago")
                self._skip -= len(skipped)
            return self._read_open(size)
        except Exception:
            if self._stream:
                if self._file:
                    self._file.close()
                self._file, self._skip = None, self._at
            raise

    def _read_open(self, size: int) -> bytes:
        try:
            return bytes(self._file.read(size))
        except IndexError as error:  # s3fs looks into the arguments of a time-out that has none
            raise error.__context__ or error from None
