"""Recorder: a lens's notebook, the file on one side and what was read before on the other."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from normlens.run.errors import RunError
from normlens.run.probe import Previous, Readings
from normlens.run.reading import Measurement
from normlens.run.store import Run
from normlens.run.writer import RunWriter, run_path

__all__ = ["Recorder"]


class Recorder:
    """Writes measurements, and remembers for every probe the first and the last thing that it read.

    Args:
        out: the run's path; None for a temporary file, and a line that says where.
        header: see :func:`normlens.run.header.session_header`.
        resume: continue an existing run.
        first_step: steps taken already; None for the last recorded one.
        raising: raise when the file cannot be written; otherwise warn once, and drop what could not be written.
    """

    def __init__(
        self,
        out: str | os.PathLike[str] | None,
        header: Mapping[str, Any],
        *,
        resume: bool = False,
        first_step: int | None = None,
        raising: bool = False,
    ) -> None:
        path = run_path(_temporary() if out is None else out)
        earlier = Run(path) if resume and path.exists() else None
        steps = [m.step for m in earlier.measurements] if earlier else []
        self.first_step = first_step if first_step is not None else max(steps, default=0)
        self._first: dict[str, Readings] = {}
        self._last: dict[str, Readings] = {}
        for measurement in earlier.with_readings() if earlier else ():
            if measurement.step < self.first_step:
                self._remember(measurement)
        self._writer = RunWriter(path, header, resume=resume, first_step=self.first_step)
        self.path = self._writer.path
        self._raising = raising
        self._lost = 0

    def previous(self, probe: str) -> Previous:
        """Return what ``probe`` read before."""
        return Previous(self._first.get(probe, {}), self._last.get(probe, {}), lambda step: self._at(probe, step))

    def write(self, measurements: Sequence[Measurement]) -> None:
        """Append the measurements of one step; a file that cannot be written does not end the training.

        Raises:
            RunError: it cannot be written, and ``raising`` was asked for.
        """
        try:
            self._writer.write([_stored(measurement) for measurement in measurements])
        except RunError as error:
            if self._raising:
                raise
            if self._lost == 0:
                warnings.warn(f"normlens: {error}. The training goes on; measurements are lost.", stacklevel=4)
            self._lost += len(measurements)
            return
        for measurement in measurements:
            self._remember(measurement)

    def close(self) -> None:
        """Close the file; one file remains."""
        self._writer.close()
        if self._lost:
            warnings.warn(f"normlens: {self._lost} measurements could not be written to {self.path}", stacklevel=3)

    def _at(self, probe: str, step: int) -> Readings:
        return {(r.layer, r.name): r for r in Run(self.path).readings(probe, step)}

    def _remember(self, measurement: Measurement) -> None:
        if measurement.status == "ok":
            self._first.setdefault(measurement.probe, _by_place(_stored(measurement)))
            self._last[measurement.probe] = _by_place(measurement)


def _stored(measurement: Measurement) -> Measurement:
    return replace(measurement, readings=tuple(r for r in measurement.readings if r.stored))


def _by_place(measurement: Measurement) -> Readings:
    return {(r.layer, r.name): r for r in measurement.readings}


def _temporary() -> Path:
    path = Path(tempfile.mkdtemp(prefix="normlens-")) / "run.sqlite"
    print(f"normlens: no out= was given; this run is kept in {path}", file=sys.stderr)
    return path
