"""RunWriter: appends measurements to a run's file, one transaction for each step."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from normlens.run.errors import RunCorruptError, RunError, RunExistsError
from normlens.run.reading import Measurement
from normlens.run.record import checksum, clean_text, encode_measurement, encode_reading, is_whole
from normlens.run.schema import FAULTS, beside, check_format, connect, create

__all__ = ["RunWriter", "run_path"]

SUFFIX = ".sqlite"


def run_path(out: str | os.PathLike[str]) -> Path:
    """Return the file of a run named ``out``: the suffix ``.sqlite`` may be left out.

    Raises:
        RunError: it is not the name of a file.
    """
    path = Path(out)
    if not path.name or "\0" in str(path):  # SQLite would cut the name there, and write to another file
        raise RunError(f"a run needs the name of a file, without NUL characters; got {str(path)!r}")
    return path if path.name.endswith(SUFFIX) else path.with_name(path.name + SUFFIX)


class RunWriter:
    """The one writer of a run's file.

    A call of :meth:`write` that returns has been committed: a process that is killed afterwards loses none of it.
    Write-ahead logging where the file system has it (readers are never blocked), a rollback journal where not.

    Args:
        out: the run's path, with or without ``.sqlite``; parent folders are made.
        header: JSON-able facts about this session: versions, seeds, configuration, machine.
        resume: continue an existing run instead of refusing it.
        first_step: the step from which this session counts; earlier sessions' records from there on are hidden.

    Raises:
        RunExistsError: a run is there and ``resume`` is False.
        RunError: the file cannot be made or written.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        header: Mapping[str, Any],
        *,
        resume: bool = False,
        first_step: int = 0,
    ) -> None:
        self.path = run_path(out).absolute()
        self._pid = os.getpid()
        text = clean_text(json.dumps(header, default=str))
        with _failures(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._claim(resume)
            self._connection = connect(self.path, mode="rw")
            try:
                self._files = self._prepare()
                self._tail = self._begin_session(int(first_step), text)
                self._places = self._whereabouts()
            except BaseException:
                self._connection.close()
                raise

    def _claim(self, resume: bool) -> None:
        try:
            self.path.touch(exist_ok=resume)  # one system call: of two processes only one can make it
        except FileExistsError as error:
            raise RunExistsError(
                f"{self.path} holds a run already; choose another name, remove it, or pass resume=True to continue it"
            ) from error

    def _prepare(self) -> tuple[Path, ...]:
        """Make the tables where there are none, choose the journal, and return the files that hold the records."""
        new = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if not new:
            check_format(self._connection, self.path)  # before anything is changed: it may be somebody else's
        wal = self._connection.execute("PRAGMA journal_mode=WAL").fetchone()[0] == "wal"
        # NORMAL is durable against a killed process with WAL; with a rollback journal only FULL is.
        self._connection.execute(f"PRAGMA synchronous={'NORMAL' if wal else 'FULL'}")
        if new:
            create(self._connection)
        return (self.path, beside(self.path, "-wal")) if wal else (self.path,)

    def _begin_session(self, first_step: int, header: str) -> tuple[int, int, int]:
        with _Transaction(self._connection):
            sessions, measurements, readings = self._read_tail()
            row = (sessions + 1, first_step, header)
            self._connection.execute("INSERT INTO session VALUES (?, ?, ?, ?)", (*row, checksum(*row)))
            return self._advance(sessions + 1, measurements, readings)

    def write(self, measurements: Sequence[Measurement]) -> None:
        """Append the measurements of one step in one transaction.

        Raises:
            RunError: the disk is full, the file has gone, another process writes to it, or this process is a fork
                of the one that opened it. Nothing of the step is written then.
        """
        if os.getpid() != self._pid:
            raise RunError(f"{self.path} was opened in another process; a fork must not write to it")
        with _failures(self.path):
            if self._whereabouts() != self._places:
                raise RunError(f"{self.path} was removed or replaced while it was being written; choose another place")
            with _Transaction(self._connection):
                if self._read_tail() != self._tail:
                    raise RunError(f"{self.path}: another process has appended to this run; only one may write")
                tail = self._insert(measurements)
        self._tail = tail

    def _whereabouts(self) -> list[tuple[int, int]]:
        """Where the files are: a removed one takes all that is written to it, without an error."""
        return [(status.st_dev, status.st_ino) for status in map(os.stat, self._files)]

    def _insert(self, measurements: Sequence[Measurement]) -> tuple[int, int, int]:
        session, measured, read = self._tail
        for m in measurements:
            row = encode_measurement(measured + 1, session, m, read + 1)
            self._connection.execute(f"INSERT INTO measurement VALUES ({_marks(12)})", row)
            rows = [(read + i, *encode_reading(reading)) for i, reading in enumerate(m.readings, start=1)]
            self._connection.executemany(f"INSERT INTO reading VALUES ({_marks(11)})", rows)
            measured, read = measured + 1, read + len(rows)
        return self._advance(session, measured, read)

    def _advance(self, *counts: int) -> tuple[int, int, int]:
        self._connection.execute(
            "UPDATE tail SET sessions=?, measurements=?, readings=?, checksum=?", (*counts, checksum(*counts))
        )
        sessions, measurements, readings = counts
        return sessions, measurements, readings

    def _read_tail(self) -> tuple[int, int, int]:
        row = self._connection.execute("SELECT sessions, measurements, readings, checksum FROM tail").fetchone()
        if row is None or not is_whole(row, (int, int, int)):
            raise RunCorruptError(f"{self.path}: the count of its records is damaged")
        sessions, measurements, readings, _ = row
        return sessions, measurements, readings

    def close(self) -> None:
        """Fold the write-ahead log into the file, so that exactly one file remains; safe to call twice."""
        if os.getpid() != self._pid:
            return
        try:
            # A reader that holds the file keeps the log alive: it stays beside the file, and nothing is lost.
            self._connection.execute("PRAGMA busy_timeout=200")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._connection.execute("PRAGMA journal_mode=DELETE")
        except sqlite3.Error:
            pass
        finally:
            self._connection.close()
            self._files, self._places = (), []

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Transaction:
    """``BEGIN IMMEDIATE`` … ``COMMIT``, or ``ROLLBACK`` when the body or the commit raises."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


@contextmanager
def _failures(path: Path) -> Iterator[None]:
    """Turn what the system or SQLite raises into a RunError."""
    try:
        yield
    except RunError:
        raise
    except (OSError, OverflowError, *FAULTS) as error:
        raise RunError(f"cannot write the run {path}: {error}") from error


def _marks(n: int) -> str:
    return ", ".join("?" * n)
