"""What went wrong at a store, whichever driver says so: one word, and a remedy a person can use."""

from __future__ import annotations

import errno

# By name, of botocore, aiohttp, requests and azure.core: two of the drivers are optional.
_NETWORK_ERRORS = {"ConnectionError", "TimeoutError", "HTTPClientError", "ClientConnectionError"}
_NETWORK_ERRORS |= {"ClientPayloadError", "ServiceRequestError", "ServiceResponseError"}
_ACCESS_ERRORS = {"PermissionError", "NoCredentialsError", "ClientAuthenticationError"}
_OTHER_ERRORS = {"OSError", "BotoCoreError", "AzureError", "GoogleAuthError"}
FAULTS: dict[str, tuple[str, str]] = {
    "bucket": ("no such bucket or folder", "Create it, or correct the location."),
    "access": ("access denied", "Check the credentials or permissions, or choose another place."),
    "network": ("no connection", "Check the network and the endpoint in storage_options."),
    "busy": ("a store that stays unavailable", "Try again later."),
    "other": ("an error", "Check the location, the space left and storage_options."),
}
"""Kind of fault -> (what was found, what to do)."""


def fault_of(error: BaseException) -> str | None:
    """Which of `FAULTS` an error is; None: a missing file, or no matter of the location."""
    response = getattr(error.__cause__ or error, "response", None)  # botocore's
    if isinstance(response, dict):
        code = response.get("Error", {}).get("Code")
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        code = getattr(error, "code", None)  # gcsfs's
        status = getattr(error, "status_code", code)  # azure's
    status = int(status) if str(status).isdecimal() else 0
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, FileNotFoundError):
        return "bucket" if code == "NoSuchBucket" else None
    if names & _ACCESS_ERRORS or status in (401, 403) or getattr(error, "errno", 0) == errno.EROFS:
        return "access"
    if not status and names & _NETWORK_ERRORS:
        return "network"
    if status >= 500 or status in (408, 409, 425, 429):
        return "busy"
    return "other" if status or names & _OTHER_ERRORS else None
