"""DataError: a file of a data set is missing, truncated or not what its name says."""

from __future__ import annotations

from pathlib import Path

__all__ = ["DataError"]


class DataError(ValueError):
    """A file of a data set cannot be read; the message names it, what it must be, what came and where to get it."""

    @classmethod
    def about(cls, path: Path, *, must: str, came: str, published: str) -> DataError:
        """Write the message.

        Args:
            path: the file or folder.
            must: what it must be, continuing "... must be".
            came: what was found there.
            published: the page of whoever publishes the data set.
        """
        return cls(f"{path} must be {must}, but {came}; fetch the data set from {published}.")
