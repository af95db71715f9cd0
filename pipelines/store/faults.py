"""Classifies errors of storage drivers into a few faults with remedies, and retries requests."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from typing import Any, TypeVar

from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

# Class names of botocore, aiohttp, requests and azure.core: two of the drivers are optional.
_NETWORK_ERRORS = {"ConnectionError", "TimeoutError", "HTTPClientError", "ClientConnectionError"}
_NETWORK_ERRORS |= {"ClientPayloadError", "ServiceRequestError", "ServiceResponseError"}
_NETWORK_ERRORS |= {"IncompleteReadError", "ResponseParserError"}  # a truncated body or XML
_ACCESS_ERRORS = {"PermissionError", "NoCredentialsError", "ClientAuthenticationError"}
_OTHER_ERRORS = {"OSError", "BotoCoreError", "AzureError", "GoogleAuthError"}
FAULTS: dict[str, tuple[str, str]] = {
    "bucket": ("no such bucket or folder", "Create it, or correct the location."),
    "access": ("access denied", "Check the credentials or permissions, or choose another place."),
    "network": ("no connection", "Check the network and the endpoint in storage_options."),
    "busy": ("a store that stays unavailable", "Try again later."),
    "full": (
        "no space left",
        "Free some space, then run the same command again: finished slices are kept.",
    ),
    "other": ("an error", "Check the location, the free space and storage_options."),
}
"""Kind of fault -> (what was found, what to do)."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PASSING = {"network", "busy"}


class StoreFaultError(Exception):
    """An error of a driver as one of `FAULTS`. It is no OSError, which formats treat as damage."""

    def __init__(self, fault: str, reason: str) -> None:
        super().__init__(reason)
        self.fault = fault


def may_pass(error: BaseException) -> bool:
    """Return whether a retry may help."""
    return fault_of(error) in _PASSING


def fault_of(error: BaseException) -> str | None:
    """Return the key of an error in `FAULTS`; None for a missing file or an unrelated error."""
    if isinstance(error, StoreFaultError):
        return error.fault
    response = getattr(error.__cause__ or error, "response", None)  # set by botocore
    if isinstance(response, dict):
        code = response.get("Error", {}).get("Code")
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        code = None
        for name in ("status", "status_code", "code"):  # set by aiohttp, azure, gcsfs
            code = code or getattr(error, name, None)
        status = code
    status = int(status) if str(status).isdecimal() else 0
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, FileNotFoundError):
        if code == "NoSuchBucket":
            return "bucket"
        # The HTTP driver raises FileNotFoundError for any failure.
        return fault_of(error.__cause__) if error.__cause__ and may_pass(error.__cause__) else None
    if getattr(error, "errno", 0) in _FULL or status == 507:
        return "full"
    if names & _ACCESS_ERRORS or status in (401, 403) or getattr(error, "errno", 0) == errno.EROFS:
        return "access"
    if not status and names & _NETWORK_ERRORS:
        return "network"
    # NoSuchUpload: the store may have completed a multipart upload although its answer was lost.
    if status >= 500 or status in (408, 409, 425, 429) or code == "NoSuchUpload":
        return "busy"
    return "other" if status or names & _OTHER_ERRORS else None


T = TypeVar("T")

# Added to the drivers' own retries (botocore and s3fs: five each; HTTP: none), which do not cover
# status 409. They take minutes if a store never answers, hence also a limit in seconds.
_STOP = stop_after_attempt(4) | stop_after_delay(120)
_WAIT = wait_random_exponential(multiplier=0.4, max=5)  # seconds; full jitter

Attempt = Callable[[Callable[[], Any]], Any]
"""A function that runs an action with retries and converts its errors."""


def patiently(action: Callable[[], T]) -> T:
    """Run an action, and retry it a few times if its error `may_pass`."""
    again = retry_if_exception(may_pass)
    return Retrying(stop=_STOP, wait=_WAIT, retry=again, reraise=True)(action)


def fetched(action: Callable[[], T]) -> T:
    """Run an action like `patiently`; a missing file and unrelated errors are raised unchanged.

    Raises:
        StoreFaultError: the store failed, after all retries.
    """
    try:
        return patiently(action)
    except Exception as error:
        fault = fault_of(error)
        if fault is None:
            raise
        raise StoreFaultError(fault, str(error) or type(error).__name__) from error


class SteadyFile(io.RawIOBase):
    """A remote file, open for reading, that retries its requests.

    `stream`: the file comes in one response; a retry skips the bytes that were already read.
    """

    def __init__(self, opener: Callable[[], Any], run: Attempt, *, stream: bool = False) -> None:
        self._opener, self._run, self._stream = opener, run, stream
        self._file: Any = None
        self._skip = self._at = 0
        self._file = run(opener)

    def read(self, size: int | None = -1) -> bytes:
        """See `io.RawIOBase`."""
        wanted = -1 if size is None else size
        data: bytes = self._run(lambda: self._read(wanted))
        self._at += len(data)
        return data

    def readall(self) -> bytes:
        """See `io.RawIOBase`."""
        return b"".join(iter(self.read, b""))

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase`."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return whether the file is no stream."""
        return not self._stream

    def seek(self, offset: int, whence: int = 0) -> int:
        """See `io.RawIOBase`."""
        self._file.seek(offset, whence)
        return self.tell()

    def tell(self) -> int:
        """See `io.RawIOBase`."""
        return self._at if self._stream else int(self._file.tell())

    def close(self) -> None:
        """See `io.RawIOBase`."""
        if self._file and not self.closed:
            self._file.close()
        super().close()

    def _read(self, size: int) -> bytes:
        try:
            self._file = self._file or self._opener()
            while self._skip:
                skipped = self._file.read(min(self._skip, 1 << 20))
                if not skipped:
                    raise ConnectionError(f"the file has become {self._skip:,} bytes shorter")
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
        except IndexError as error:  # s3fs reads arguments of a time-out that has none
            raise error.__context__ or error from None
