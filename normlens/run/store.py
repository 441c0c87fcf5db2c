"""Run: one SQLite file, append-only, checksummed; this is the side that reads it. No torch here."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from normlens.run.errors import NotRecordedError, RunCorruptError, RunError, RunNotFoundError
from normlens.run.reading import Measurement, Reading
from normlens.run.record import MEASUREMENT, SESSION, decode_json, decode_measurement, decode_reading, is_whole
from normlens.run.schema import FAULTS, check_format, most_rows, open_to_read
from normlens.run.writer import run_path

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LabeledArray", "Run", "open_run"]


class LabeledArray(NamedTuple):
    """An array and the coordinates along each of its named dimensions."""

    values: NDArray[Any]
    coords: dict[str, NDArray[Any]]


class Run:
    """A recorded run, finished or still being written.

    Every call looks at the file anew, so that a run that is being written can be watched. What was measured twice,
    because a session resumed from an earlier step, is seen as the last session measured it.

    Args:
        path: the file.
        recover: read what is whole of a damaged file instead of raising; :attr:`damage` says what was left out.
    """

    def __init__(self, path: Path, *, recover: bool = False) -> None:
        self.path = path.absolute()
        self.damage: tuple[str, ...] = ()
        self._recover = recover
        with self._reading() as connection:
            check_format(connection, self.path, lenient=recover)

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.name.removesuffix(".sqlite")

    @property
    def header(self) -> dict[str, Any]:
        """What the last session wrote of itself: versions, seeds, configuration, machine."""
        return self.sessions[-1] if self.sessions else {}

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """The headers of all sessions, with the ``first_step`` of each, in order."""
        headers = []
        for index, first_step, text in self._rows("session"):
            header = decode_json(text, where=f"{self.path}, session {index}")
            if not isinstance(header, dict):
                raise RunCorruptError(f"{self.path}, session {index}: the header is no JSON object")
            headers.append({**header, "first_step": first_step})
        return headers

    @property
    def measurements(self) -> list[Measurement]:
        """All visible measurements in the order they were made, without their readings."""
        return [measurement for _, measurement, _ in self._measurements()]

    @property
    def probes(self) -> list[str]:
        """The probes that have at least one reading, in order of first appearance."""
        return list(dict.fromkeys(m.probe for _, m, count in self._measurements() if count and m.status == "ok"))

    def steps(self, probe: str) -> list[int]:
        """Return the steps at which ``probe`` was measured successfully, ascending."""
        return sorted({m.step for _, m, _ in self._measurements() if m.probe == probe and m.status == "ok"})

    def readings(self, probe: str, step: int) -> tuple[Reading, ...]:
        """Return what ``probe`` read at ``step``, in one measurement or in several.

        Raises:
            NotRecordedError: it was not measured then, or failed.
        """
        found = [m for m in self.with_readings(probe, (step,)) if m.status == "ok" or m.readings]
        if found:
            return tuple(reading for measurement in found for reading in measurement.readings)
        raise NotRecordedError(f"{self.name}: {probe!r} was not measured at step {step}; steps: {self.steps(probe)}")

    def frame(self, probe: str) -> pd.DataFrame:
        """Return all readings of ``probe`` as a tidy table.

        Columns: step, layer, unit (the index along a one-dimensional reading, <NA> for a scalar), name, value, error,
        units, n, mode. Arrays of two and more dimensions are for :meth:`array`.

        Raises:
            NotRecordedError: the run has no reading of that probe.
        """
        from normlens.run.table import tidy

        measurements = [m for m in self.with_readings(probe) if m.status == "ok"]
        if not measurements:
            known = ", ".join(self.probes) or "none"
            raise NotRecordedError(f"{self.name} holds no reading of probe {probe!r}; it has: {known}")
        return tidy(measurements)

    def to_pandas(self) -> pd.DataFrame:
        """Return the tidy tables of all probes in one, with a leading column ``probe``."""
        import pandas as pd

        from normlens.run.table import COLUMNS

        frames = [self.frame(probe).assign(probe=probe) for probe in self.probes]
        filled = [frame for frame in frames if len(frame)]  # an empty one would change the types of the others
        table = pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=["probe", *COLUMNS])
        return table[["probe", *COLUMNS]]

    def array(self, probe: str, name: str, *, layer: str = "", step: int | None = None) -> LabeledArray:
        """Return one reading with its coordinates: at one step, or stacked over all steps.

        A one-dimensional reading of the same layer and step that is named like a dimension gives its coordinates;
        otherwise they are 0, 1, 2, …

        Raises:
            NotRecordedError: there is no such reading.
            ValueError: the shape or a coordinate changes from step to step, so that they cannot be stacked.
        """
        steps = (step,) if step is not None else tuple(self.steps(probe))
        found = [(m.step, m.readings, r) for m in self.with_readings(probe, steps) for r in m.readings]
        found = [(at, others, r) for at, others, r in found if r.name == name and r.layer == layer]
        if not found:
            raise NotRecordedError(f"{self.name}: no reading {probe}/{name} for layer {layer!r} at step {step}")
        _, others, reading = found[-1]
        coords = _coordinates(others, reading)
        if step is not None:
            return LabeledArray(reading.array, coords)
        if len({(r.dims, r.array.shape) for _, _, r in found}) > 1:
            raise ValueError(f"{probe}/{name} of {layer!r} changes its shape over the run; pass step=")
        for _, others, reading in found:
            changed = [dim for dim, at in _coordinates(others, reading).items() if not _equal(at, coords[dim])]
            if changed:
                raise ValueError(f"{probe}/{name} of {layer!r} changes its {changed[0]!r} over the run; pass step=")
        stacked = np.stack([r.array for _, _, r in found])
        return LabeledArray(stacked, {"step": np.array([at for at, _, _ in found]), **coords})

    def names(self, probe: str) -> list[tuple[str, str]]:
        """Return the pairs (layer, name) that ``probe`` has read, in order of first appearance."""
        return list(dict.fromkeys((r.layer, r.name) for m in self.with_readings(probe) for r in m.readings))

    def with_readings(self, probe: str | None = None, steps: Sequence[int] | None = None) -> Iterator[Measurement]:
        """Yield the visible measurements with their readings: of one probe or all, at given steps or all."""
        for first, measurement, count in self._measurements():
            if probe in (None, measurement.probe) and (steps is None or measurement.step in steps):
                try:
                    yield replace(measurement, readings=self._readings(first, count))
                except RunCorruptError as error:
                    self._complain(error)

    def _readings(self, first: int, count: int) -> tuple[Reading, ...]:
        with self._reading() as connection:
            query = "SELECT * FROM reading WHERE id >= ? ORDER BY id LIMIT ?"
            rows = connection.execute(query, (first, min(count, most_rows(self.path)))).fetchall()
        if len(rows) != count or [row[0] for row in rows] != list(range(first, first + count)):
            raise RunCorruptError(f"{self.path}: readings are missing between {first} and {first + count - 1}")
        return tuple(decode_reading(row[1:], where=f"{self.path}, reading {row[0]}") for row in rows)

    def _measurements(self) -> list[tuple[int, Measurement, int]]:
        rows = self._rows("measurement")
        starts = {session: first_step for session, first_step, _ in self._rows("session")}
        known = set(starts)
        for _, session, step, *_ in rows:
            if session not in known:  # damaged: it hid what it measured again, at the least
                starts[session] = min(step, starts.get(session, step))
        visible = []
        for _, session, *fields, first, count in rows:
            if not any(later > session and start <= fields[0] for later, start in starts.items()):
                visible.append((first, decode_measurement(tuple(fields)), count))
        return visible

    def _rows(self, table: str) -> list[tuple[Any, ...]]:
        """Fetch the rows of a table, verify each against its checksum, and verify that none is missing."""
        types = {"session": SESSION, "measurement": MEASUREMENT}[table]
        with self._reading() as connection:
            connection.execute("BEGIN")  # one snapshot for the rows and the count of them
            expected = self._count(connection, table)
            rows = self._fetch(connection, f"SELECT * FROM {table} ORDER BY id LIMIT {most_rows(self.path)}")
        whole = {row[0]: row[:-1] for row in rows if is_whole(row, types)}
        if expected is not None and (len(whole) != expected or list(whole) != list(range(1, expected + 1))):
            self._complain(RunCorruptError(f"{self.path}: {expected} {table}s were written, {len(whole)} are whole"))
        return [whole[index] for index in sorted(whole)]

    def _fetch(self, connection: sqlite3.Connection, query: str) -> list[tuple[Any, ...]]:
        """Fetch row by row, so that in recovery what lies before a fault is kept."""
        rows: list[tuple[Any, ...]] = []
        try:
            for row in connection.execute(query):
                rows.append(row)
        except FAULTS as error:
            self._complain(error)
        return rows

    def _count(self, connection: sqlite3.Connection, table: str) -> int | None:
        rows = self._fetch(connection, "SELECT sessions, measurements, readings, checksum FROM tail LIMIT 2")
        if len(rows) != 1 or not is_whole(rows[0], (int, int, int)):
            self._complain(RunCorruptError(f"{self.path}: the count of its records is damaged"))
            return None
        return int(rows[0][("session", "measurement").index(table)])

    def _complain(self, error: Exception) -> None:
        if not self._recover:
            raise error
        if str(error) not in self.damage:
            self.damage = (*self.damage, str(error))

    def _reading(self) -> AbstractContextManager[sqlite3.Connection]:
        """A connection for one question: held no longer, so that the writer can always fold its log."""
        return open_to_read(self.path, lenient=self._recover)


def open_run(path: str | os.PathLike[str], *, recover: bool = False) -> Run:
    """Open a recorded run for reading; opening executes nothing that the file contains.

    Args:
        path: the run's file, with or without ``.sqlite``.
        recover: read what is whole of a damaged file; ``run.damage`` says what was left out.

    Raises:
        RunNotFoundError: there is no such file.
        RunFormatError: it is not a normlens run, or a newer one.
        RunCorruptError: it is damaged.
    """
    try:
        file = Path(path) if Path(path).is_file() else run_path(path)
        found = file.is_file()
    except OSError as error:
        raise RunError(f"cannot open the run {path}: {error}") from error
    if not found:
        raise RunNotFoundError(f"there is no run at {path}: neither that file nor {file} exists")
    return Run(file, recover=recover)


def _coordinates(others: Sequence[Reading], reading: Reading) -> dict[str, NDArray[Any]]:
    return {dim: _coordinate(others, reading, axis) for axis, dim in enumerate(reading.dims)}


def _coordinate(others: Sequence[Reading], reading: Reading, axis: int) -> NDArray[Any]:
    dim, size = reading.dims[axis], reading.array.shape[axis]
    named = [r.array for r in others if r.name == dim and r.layer == reading.layer and r.array.shape == (size,)]
    return named[0] if named else np.arange(size)


def _equal(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()  # bit by bit: nan is nan
