"""The exceptions that packvec raises, with their exit codes.

    EmbedError                  1  base class
    ├── ModelError              2
    ├── EncodeError             1
    ├── DeviceError             1
    ├── ConfigError             2
    ├── SourceError             2
    │   ├── SourceChangedError  1
    │   └── UnreadableUnitError 1
    ├── StorageError            2
    └── IndexStateError         2
        ├── LeaseHeldError      2
        └── GateError           3

Exit code 1: the run failed. 2: nothing was started; change the request. 3: the generation is
committed but not published.
"""

from __future__ import annotations


class EmbedError(Exception):
    """An error for the user: `message` (what was expected, found, where) and `remedy`."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)  # both in args, which pickling between processes keeps
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class ModelError(EmbedError):
    """The model cannot be loaded, or does not support the request."""

    exit_code = 2


class EncodeError(EmbedError):
    """The vectors of a passage or the scores of a pair cannot be computed."""


class DeviceError(EmbedError):
    """The device failed permanently for this process; a new process is needed."""


class ConfigError(EmbedError):
    """A configuration file or override is invalid."""

    exit_code = 2


class SourceError(EmbedError):
    """Documents cannot be found, or cannot be read as configured."""

    exit_code = 2


class SourceChangedError(SourceError):
    """A unit differs from the plan; mixing both versions would corrupt the index."""

    exit_code = 1


class UnreadableUnitError(SourceError):
    """A unit of the plan is damaged or cannot be fetched."""

    exit_code = 1


class StorageError(EmbedError):
    """The location of the index cannot be used."""

    exit_code = 2


class IndexStateError(EmbedError):
    """The state of the index forbids the command."""

    exit_code = 2


class LeaseHeldError(IndexStateError):
    """Another process holds the lease of this index."""


class GateError(IndexStateError):
    """A generation is committed but failed a check of the gate, so it is not published."""

    exit_code = 3
