"""What went wrong at a store, whichever driver says so: one word, and a remedy a person can use."""

from __future__ import annotations

import errno

# By name, of botocore, aiohttp, requests and azure.core: two of the drivers are optional.
_NETWORK_ERRORS = {"ConnectionError", "TimeoutError", "HTTPClientError", "ClientConnectionError"}
_NETWORK_ERRORS |= {"ClientPayloadError", "ServiceRequestError", "ServiceResponseError"}
_NETWORK_ERRORS |= {"IncompleteReadError", "ResponseParserError"}  # half a body, half an XML
_ACCESS_ERRORS = {"PermissionError", "NoCredentialsError", "ClientAuthenticationError"}
_OTHER_ERRORS = {"OSError", "BotoCoreError", "AzureError", "GoogleAuthError"}
FAULTS: dict[str, tuple[str, str]] = {
    "bucket": ("no such bucket or folder", "Create it, or correct the location."),
    "access": ("access denied", "Check the credentials or permissions, or choose another place."),
    "network": ("no connection", "Check the network and the endpoint in storage_options."),
    "busy": ("a store that stays unavailable", "Try again later."),
    "full": (
        "no space left",
        "Free some, then run the same command again: finished slices are kept.",
    ),
    "other": ("an error", "Check the location, the space left and storage_options."),
}
"""Kind of fault -> (what was found, what to do)."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PASSING = {"network", "busy"}


class StoreFaultError(Exception):
    """What a driver raised, as one of `FAULTS`; no OSError, which formats take for damage."""

    def __init__(self, fault: str, reason: str) -> None:
        super().__init__(reason)
        self.fault = fault


def may_pass(error: BaseException) -> bool:
    """Whether trying again may help."""
    return fault_of(error) in _PASSING


def fault_of(error: BaseException) -> str | None:
    """Which of `FAULTS` an error is; None: a missing file, or no matter of the location."""
    if isinstance(error, StoreFaultError):
        return error.fault
    response = getattr(error.__cause__ or error, "response", None)  # botocore's
    if isinstance(response, dict):
        code = response.get("Error", {}).get("Code")
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        code = None
        for name in ("status", "status_code", "code"):  # of aiohttp, azure, gcsfs
            code = code or getattr(error, name, None)
        status = code
    status = int(status) if str(status).isdecimal() else 0
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, FileNotFoundError):
        if code == "NoSuchBucket":
            return "bucket"
        # What HTTP's driver says of any failure, too.
        return fault_of(error.__cause__) if error.__cause__ and may_pass(error.__cause__) else None
    if getattr(error, "errno", 0) in _FULL or status == 507:
        return "full"
    if names & _ACCESS_ERRORS or status in (401, 403) or getattr(error, "errno", 0) == errno.EROFS:
        return "access"
    if not status and names & _NETWORK_ERRORS:
        return "network"
    # A multipart upload is gone also where its end was served and only the answer was lost.
    if status >= 500 or status in (408, 409, 425, 429) or code == "NoSuchUpload":
        return "busy"
    return "other" if status or names & _OTHER_ERRORS else None
