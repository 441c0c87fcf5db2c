"""What a command may fail with, and the exit code of each."""

from __future__ import annotations

__all__ = ["FAILURE", "INTERRUPTED", "NO_RUN", "OK", "UNSUPPORTED", "USAGE", "UnsupportedError", "UsageError"]

OK, FAILURE, USAGE, NO_RUN, UNSUPPORTED, INTERRUPTED = 0, 1, 2, 3, 4, 130


class UsageError(Exception):
    """The command cannot be what the person meant: an unknown name, a value out of its range."""


class UnsupportedError(Exception):
    """The command is well-formed, but this model, layer or probe cannot do what it asks."""
