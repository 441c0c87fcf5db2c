"""The tables of a run's file, and how a connection to it is opened.

Four tables, append-only. ``tail`` counts the rows of the others in the same transaction that adds them: a row that a
fault makes vanish is missed, which the checksums of the rows that remain could not show.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from normlens.run.errors import RunCorruptError, RunError, RunFormatError, RunNotFoundError
from normlens.run.record import checksum

__all__ = [
    "APPLICATION_ID",
    "FAULTS",
    "SCHEMA_VERSION",
    "TABLES",
    "beside",
    "check_format",
    "connect",
    "create",
    "most_rows",
    "open_to_read",
]

APPLICATION_ID = 0x4E4C454E  # "NLEN"
SCHEMA_VERSION = 1
_NAMES_ANOTHER_FILE = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"  # how a rollback journal over several files ends
FAULTS = (sqlite3.Error, UnicodeDecodeError)  # what sqlite3 raises: it may cite a damaged text, and fail to decode it

_ATTEMPTS = 10  # to open a file whose writer is closing or resuming, 20 ms apart
TABLES = {
    "session": "CREATE TABLE session (id INTEGER PRIMARY KEY, first_step INTEGER, header TEXT, checksum INTEGER)",
    "measurement": "CREATE TABLE measurement (id INTEGER PRIMARY KEY, session INTEGER, step INTEGER, probe TEXT, "
    "status TEXT, message TEXT, mode TEXT, seconds REAL, elapsed REAL, first_reading INTEGER, readings INTEGER, "
    "checksum INTEGER)",
    "reading": "CREATE TABLE reading (id INTEGER PRIMARY KEY, name TEXT, layer TEXT, units TEXT, dims TEXT, "
    "dtype TEXT, shape TEXT, value BLOB, error REAL, n INTEGER, checksum INTEGER)",
    "tail": "CREATE TABLE tail (id INTEGER PRIMARY KEY, sessions INTEGER, measurements INTEGER, readings INTEGER, "
    "checksum INTEGER)",
}


def connect(path: Path, *, mode: str, lenient: bool = False) -> sqlite3.Connection:
    """Open the file, with the settings that a hostile or damaged one calls for.

    Args:
        path: the file.
        mode: SQLite's "ro", "rw" or "rwc".
        lenient: read a file that is shorter than it says it is (to SQLite: whose schema may be wrong).
    """
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=30.0, isolation_level=None, check_same_thread=False)
    connection.text_factory = _text
    for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0", f"writable_schema={int(lenient)}"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def create(connection: sqlite3.Connection) -> None:
    """Make the tables of a run of which nothing is recorded, all at once or not at all."""
    connection.execute("BEGIN IMMEDIATE")
    for statement in TABLES.values():
        connection.execute(statement)
    connection.execute("INSERT INTO tail VALUES (1, 0, 0, 0, ?)", (checksum(0, 0, 0),))
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    connection.execute("COMMIT")


def check_format(connection: sqlite3.Connection, path: Path, *, lenient: bool = False) -> None:
    """Refuse a file that is not ours, is newer than we are, is damaged, or carries views and triggers.

    Args:
        connection: an open connection.
        path: the file's name, for the message.
        lenient: let the file's mark be wrong, and do not walk all its pages (SQLite's quick_check).

    Raises:
        RunFormatError: not a normlens run, a newer one, or one with tables that are not ours.
        RunCorruptError: the pages do not hang together.
    """
    if not lenient and connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise RunFormatError(f"{path} is not a normlens run (a SQLite file, but not one of ours)")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        raise RunFormatError(
            f"{path} has schema version {version}, this normlens reads {SCHEMA_VERSION}: "
            f"open it with the normlens that wrote it, or a newer one"
        )
    # Each row with its type: a trigger may bear the name of a table.
    found = connection.execute("SELECT type, name, sql FROM sqlite_master LIMIT 9").fetchall()
    if sorted(found, key=repr) != sorted((("table", *table) for table in TABLES.items()), key=repr):
        raise RunFormatError(
            f"{path} does not hold the tables of a normlens run and nothing else: {[row[:2] for row in found]!r:.200}"
        )
    if not lenient and (damage := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise RunCorruptError(f"{path} is damaged: {damage}; open_run(path, recover=True) reads what is whole")


@contextmanager
def open_to_read(path: Path, *, lenient: bool) -> Iterator[sqlite3.Connection]:
    """Give a connection that reads the file, closed afterwards; what SQLite raises becomes a RunError."""
    try:
        with closing(_settled(path, lenient)) as connection:
            yield connection
    except FAULTS as error:
        raise _explained(error, path) from error


def _settled(path: Path, lenient: bool) -> sqlite3.Connection:
    """Open, and read something: from then on the writer can no longer put its log away under us.

    While it does just that, or takes the log up again, a reader that may not write is refused for a moment.
    """
    for left in reversed(range(_ATTEMPTS)):
        connection = connect(path, mode=_reading_mode(path), lenient=lenient)
        try:
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            connection.close()
            if left == 0 or getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_READONLY:
                raise
            time.sleep(0.02)
        else:
            break
    return connection


def most_rows(path: Path) -> int:
    """Return how many rows the file can hold: a hostile tree of pages could offer the same ones over and over."""
    return sum(map(_size, (beside(path, "-wal"), path))) // 8


def beside(path: Path, suffix: str) -> Path:
    """Return the file that SQLite keeps beside ``path``, where that really is."""
    real = path.resolve()
    return real.with_name(real.name + suffix)


def _text(raw: bytes) -> str | bytes:
    """Decode a text of the file; one that is not UTF-8 stays bytes, which no column of ours may hold."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _reading_mode(path: Path) -> str:
    """SQLite's mode for reading: "rw" only to undo the half-written step of a process that was killed without a log.

    Not where that journal names another file: SQLite would delete it.
    """
    try:
        with beside(path, "-journal").open("rb") as journal:
            journal.seek(-8, os.SEEK_END)
            names_another_file = journal.read() == _NAMES_ANOTHER_FILE
    except OSError:
        return "ro"
    return "rw" if _is_left_over(path) and not names_another_file else "ro"


def _is_left_over(path: Path) -> bool:
    """Whether the journal belongs to no living writer: SQLite knows by the lock that the writer would hold."""
    with closing(connect(path, mode="ro")) as connection:
        try:
            connection.execute("PRAGMA schema_version")
        except sqlite3.OperationalError as error:
            return error.sqlite_errorcode == sqlite3.SQLITE_READONLY_ROLLBACK
    return False


def _explained(error: Exception, path: Path) -> RunError:
    if not path.exists():
        return RunNotFoundError(f"there is no run at {path} any more")
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF  # the rest is detail
    if code == sqlite3.SQLITE_NOTADB:
        return RunFormatError(f"{path} is not a normlens run: {error}")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return RunError(
            f"cannot open {path}: {error}. A run that was not closed needs the file beside it that ends in -wal, "
            f"-shm or -journal, and a folder that may be written to: copy them all to such a folder and open it there"
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR):
        return RunError(f"cannot read {path}: {error}; try again, or copy it to a local disk and open it there")
    return RunCorruptError(f"{path} is damaged: {error}; open_run(path, recover=True) reads what is whole")
