"""The tables of a run's file, and how a connection to it is opened.

Four tables, append-only. ``tail`` counts the rows of the others in the same transaction that adds them: a row that a
fault makes vanish is missed, which the checksums of the rows that remain could not show.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from normlens.run.errors import RunCorruptError, RunFormatError

__all__ = ["APPLICATION_ID", "SCHEMA_VERSION", "TABLES", "check_format", "connect", "create"]

APPLICATION_ID = 0x4E4C454E  # "NLEN"
SCHEMA_VERSION = 1

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


def connect(path: Path, *, mode: str) -> sqlite3.Connection:
    """Open the file, with the settings that a hostile or damaged one calls for.

    Args:
        path: the file.
        mode: SQLite's "ro", "rw" or "rwc".
    """
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=30.0, isolation_level=None, check_same_thread=False)
    for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def create(connection: sqlite3.Connection) -> None:
    """Make the empty tables, all at once or not at all."""
    connection.execute("BEGIN IMMEDIATE")
    for statement in TABLES.values():
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    connection.execute("COMMIT")


def check_format(connection: sqlite3.Connection, path: Path, *, thorough: bool = True) -> None:
    """Refuse a file that is not ours, is newer than we are, is damaged, or carries views and triggers.

    Args:
        connection: an open connection.
        path: the file's name, for the message.
        thorough: also walk all pages (SQLite's quick_check).

    Raises:
        RunFormatError: not a normlens run, a newer one, or one with tables that are not ours.
        RunCorruptError: the pages do not hang together.
    """
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise RunFormatError(f"{path} is not a normlens run (a SQLite file, but not one of ours)")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        raise RunFormatError(
            f"{path} has schema version {version}, this normlens reads {SCHEMA_VERSION}: "
            f"open it with the normlens that wrote it, or a newer one"
        )
    found = dict(connection.execute("SELECT name, sql FROM sqlite_master").fetchall())
    if found != TABLES:
        raise RunFormatError(f"{path} does not hold the tables of a normlens run and nothing else: {sorted(found)}")
    if thorough and (damage := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise RunCorruptError(f"{path} is damaged: {damage}; open_run(path, recover=True) reads what is whole")
