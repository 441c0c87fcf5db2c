"""What can be wrong with a run's file, as types."""

from __future__ import annotations

__all__ = [
    "NotRecordedError",
    "RunCorruptError",
    "RunError",
    "RunExistsError",
    "RunFormatError",
    "RunNotFoundError",
]


class RunError(Exception):
    """Something is wrong with a run's file; every other error of the store is one of these."""


class RunNotFoundError(RunError, FileNotFoundError):
    """There is no file at that path."""


class RunFormatError(RunError):
    """The file is not a normlens run, or was written by a newer normlens."""


class RunCorruptError(RunError):
    """The file is damaged: truncated, or a record no longer matches its checksum."""


class RunExistsError(RunError, FileExistsError):
    """A run is already there, and appending to it was not asked for."""


class NotRecordedError(RunError, LookupError):
    """The run holds no such probe, reading or step."""
