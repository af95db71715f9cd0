"""The one exception tree.

    EmbedError                  every error this project raises on purpose; exit code 1
    ├── ModelError              a model that cannot be loaded or lacks what was asked; exit code 2
    ├── EncodeError             a passage whose vectors cannot be computed; exit code 1
    ├── DeviceError             a device that computes no more in this process; exit code 1
    ├── ConfigError             a configuration that cannot be used; exit code 2
    ├── SourceError             documents that cannot be found or read as configured; exit code 2
    │   ├── SourceChangedError  a unit that is no longer what the plan pinned; exit code 1
    │   └── UnreadableUnitError a unit that is damaged or cannot be fetched; exit code 1
    ├── StorageError            an index location that cannot be used; exit code 2
    └── IndexStateError         an index whose state forbids the command; exit code 2
        ├── LeaseHeldError      another run is writing this index; exit code 2
        └── GateError           a generation that must not be published as it is; exit code 3

Exit code 2 means "nothing was started, change the request"; 1 means "a run failed"; 3 means
"committed, and not live".
"""

from __future__ import annotations


class EmbedError(Exception):
    """An error meant to be read by a person: one line, and a remedy.

    `message` says what was expected, what was found and where; `remedy` says what to do.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)  # both in args: what pickling between processes keeps
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class ModelError(EmbedError):
    """A model that cannot be loaded, or that cannot give what was asked of it."""

    exit_code = 2


class EncodeError(EmbedError):
    """A passage whose vectors cannot be computed."""


class DeviceError(EmbedError):
    """The device computes no more in this process, whatever is asked of it: start another one."""


class ConfigError(EmbedError):
    """A configuration file or override that cannot be used."""

    exit_code = 2


class SourceError(EmbedError):
    """Documents that cannot be found, or cannot be read as configured."""

    exit_code = 2


class SourceChangedError(SourceError):
    """A unit is no longer what the plan pinned; mixing the two would corrupt the index."""

    exit_code = 1


class UnreadableUnitError(SourceError):
    """A unit that was planned, and is damaged or cannot be fetched."""

    exit_code = 1


class StorageError(EmbedError):
    """An index location that cannot be used."""

    exit_code = 2


class IndexStateError(EmbedError):
    """The state of the index forbids the command."""

    exit_code = 2


class LeaseHeldError(IndexStateError):
    """Another run is writing this index."""


class GateError(IndexStateError):
    """A generation is committed, and a check has kept it from being published."""

    exit_code = 3
