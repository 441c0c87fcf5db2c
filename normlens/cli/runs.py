"""From the paths that a person types to the runs that they mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from normlens.run.errors import RunNotFoundError

if TYPE_CHECKING:
    from normlens.run.store import Run

__all__ = ["find_runs"]


def find_runs(paths: Sequence[str], *, recover: bool = False) -> dict[str, Run]:
    """Open the runs at ``paths``: files, or folders that hold some; labeled by name, in the order they were begun.

    Args:
        paths: files with or without ``.sqlite``, or folders.
        recover: read what is whole of damaged files.

    Raises:
        RunNotFoundError: a path holds no run.
    """
    from normlens.run.store import open_run  # NumPy takes 0.1 s to import, and `--help` does not need it

    found: list[Run] = []
    for path in map(Path, paths):
        files = sorted(path.glob("*.sqlite")) if path.is_dir() else [path]
        if not files:
            raise RunNotFoundError(f"the folder {path} holds no run (no file *.sqlite)")
        opened = [open_run(file, recover=recover) for file in files]
        found += sorted(opened, key=lambda run: (str(run.header.get("started", "")), run.path.stat().st_ctime_ns))
    labels = [str(run.header.get("name") or run.name) for run in found]
    return {
        label if labels.count(label) == 1 else f"{label} ({run.path})": run
        for label, run in zip(labels, found, strict=True)
    }
