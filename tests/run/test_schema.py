from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing

import pytest

from normlens.run import schema
from normlens.run.errors import RunCorruptError, RunError, RunFormatError, RunNotFoundError
from normlens.run.record import checksum
from normlens.run.schema import APPLICATION_ID, TABLES, check_format, connect, create, most_rows, open_to_read


@pytest.fixture
def check(tmp_path):
    """``check(*statements)``: run them on an empty run, then check its format."""

    def run(*statements, lenient=False):
        path = tmp_path / "x.sqlite"
        with closing(connect(path, mode="rwc")) as connection:
            create(connection)
            for statement in statements:
                connection.execute(statement)
            check_format(connection, path, lenient=lenient)

    return run


def test_a_fresh_run_passes_and_holds_four_tables_and_a_count_of_nothing(tmp_path):
    with closing(connect(tmp_path / "x", mode="rwc")) as connection:
        create(connection)
        check_format(connection, tmp_path / "x")
        assert connection.execute("SELECT * FROM tail").fetchall() == [(1, 0, 0, 0, checksum(0, 0, 0))]
        assert dict(connection.execute("SELECT name, sql FROM sqlite_master")) == TABLES


def test_a_file_of_another_program_is_refused(check):
    with pytest.raises(RunFormatError, match=r"x\.sqlite is not a normlens run \(a SQLite file, but not one of ours"):
        check("PRAGMA application_id=1")


@pytest.mark.parametrize("lenient", [False, True])
def test_a_newer_schema_is_refused_with_advice_even_in_recovery(check, lenient):
    with pytest.raises(RunFormatError, match=r"schema version 2, this normlens reads 1: open it with .* or a newer"):
        check("PRAGMA user_version=2", lenient=lenient)


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW evil AS SELECT * FROM reading",
        "CREATE TABLE extra (a)",
        "CREATE INDEX i ON reading (name)",
        "CREATE TRIGGER t AFTER INSERT ON reading BEGIN DELETE FROM reading; END",
        "CREATE TRIGGER session AFTER INSERT ON measurement BEGIN DELETE FROM reading; END",
        "DROP TABLE reading",
        "ALTER TABLE session ADD COLUMN more",
        "CREATE VIRTUAL TABLE v USING fts5(a)",
    ],
)
def test_anything_but_our_tables_is_refused(check, statement, lenient):
    with pytest.raises(RunFormatError, match="does not hold the tables of a normlens run and nothing else"):
        check(statement, lenient=lenient)


@pytest.mark.parametrize("lenient", [False, True])
def test_a_view_that_claims_to_be_a_table_is_refused(check, lenient):
    disguise = "UPDATE sqlite_master SET type='view' WHERE name='reading'"
    with pytest.raises(RunFormatError, match="does not hold the tables"):
        check("PRAGMA writable_schema=ON", disguise, lenient=lenient)


def test_recovery_forgives_a_wrong_mark_if_the_tables_are_ours(check):
    check(f"PRAGMA application_id={APPLICATION_ID ^ 1}", lenient=True)


def test_damaged_pages_are_noticed_at_once(small_file):
    path, _ = small_file
    raw = bytearray(path.read_bytes())
    raw[2 * 4096 : 2 * 4096 + 8] = b"\xff" * 8
    path.write_bytes(raw)
    with pytest.raises(RunCorruptError, match="damaged"), open_to_read(path, lenient=False) as connection:
        check_format(connection, path)


def test_a_connection_distrusts_the_file(small_file):
    with closing(connect(small_file[0], mode="ro")) as connection:
        settings = {p: connection.execute(f"PRAGMA {p}").fetchone() for p in ("trusted_schema", "cell_size_check")}
        assert settings == {"trusted_schema": (0,), "cell_size_check": (1,)}
        assert connection.execute("PRAGMA mmap_size").fetchone() in {(0,), None}
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute("DELETE FROM reading")


def test_a_tree_of_pages_cannot_hold_more_rows_than_bytes(small_file):
    path, _ = small_file
    assert most_rows(path) == path.stat().st_size // 8
    path.with_name("small.sqlite-wal").write_bytes(bytes(800))
    assert most_rows(path) == path.stat().st_size // 8 + 100


@pytest.mark.parametrize(
    ("code", "kind", "advice"),
    [
        (sqlite3.SQLITE_CORRUPT, RunCorruptError, r"recover=True"),
        (sqlite3.SQLITE_ERROR, RunCorruptError, r"recover=True"),
        (sqlite3.SQLITE_NOTADB, RunFormatError, r"not a normlens run"),
        (sqlite3.SQLITE_CANTOPEN, RunError, r"copy them all to such a folder"),
        (sqlite3.SQLITE_READONLY_ROLLBACK, RunError, r"copy them all to such a folder"),
        (sqlite3.SQLITE_BUSY, RunError, r"try again"),
        (sqlite3.SQLITE_IOERR_READ, RunError, r"copy it to a local disk"),
    ],
)
def test_what_sqlite_raises_becomes_the_error_that_fits(small_file, code, kind, advice):
    error = sqlite3.DatabaseError("the reason")
    error.sqlite_errorcode = code
    pattern = f"small.sqlite.*the reason.*{advice}|{advice}.*the reason"
    with pytest.raises(kind, match=pattern) as caught, open_to_read(small_file[0], lenient=False):
        raise error
    assert type(caught.value) is kind


def test_a_run_that_is_removed_while_it_is_open_is_missed_and_not_called_damaged(small_file):
    path, _ = small_file
    path.unlink()
    with (
        pytest.raises(RunNotFoundError, match=r"no run at .* any more"),
        open_to_read(path, lenient=False) as connection,
    ):
        connection.execute("SELECT 1 FROM tail")


def killed_without_a_log(path, ending=b""):
    """A run whose writer died half-way through a step, with a rollback journal instead of a log."""
    source = path.with_name("source.sqlite")
    with closing(connect(source, mode="rwc")) as connection:
        create(connection)
        connection.execute("PRAGMA cache_size=1")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE tail SET sessions=99")
        connection.executemany("INSERT INTO session VALUES (?, 0, ?, 0)", [(i, "x" * 3000) for i in range(1, 20)])
        shutil.copy(source, path)
        journal = path.with_name(path.name + "-journal")
        shutil.copy(source.with_name("source.sqlite-journal"), journal)
        journal.write_bytes(journal.read_bytes() + ending)
        connection.execute("ROLLBACK")
    return journal


def test_the_half_written_step_of_a_killed_process_is_undone(tmp_path):
    journal = killed_without_a_log(tmp_path / "x.sqlite")
    with open_to_read(tmp_path / "x.sqlite", lenient=False) as connection:
        assert connection.execute("SELECT sessions FROM tail").fetchall() == [(0,)]
    assert not journal.exists()


def test_a_journal_that_names_another_file_is_not_played_back(tmp_path):
    """SQLite would delete the file that such a journal names."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    name = str(victim).encode()
    ending = (0).to_bytes(4, "big") + name + len(name).to_bytes(4, "big") + sum(name).to_bytes(4, "big")
    killed_without_a_log(tmp_path / "x.sqlite", ending + b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7")
    with (
        pytest.raises(RunError, match="cannot open"),
        open_to_read(tmp_path / "x.sqlite", lenient=False) as connection,
    ):
        connection.execute("SELECT sessions FROM tail")
    assert victim.read_bytes() == b"precious"


class Refusing(sqlite3.Connection):
    """Is refused the first times it reads, as beside a writer that is putting its log away."""

    left = 0
    code = sqlite3.SQLITE_READONLY_RECOVERY

    def execute(self, *arguments):
        if type(self).left:
            type(self).left -= 1
            error = sqlite3.OperationalError("attempt to write a readonly database")
            error.sqlite_errorcode = self.code
            raise error
        return super().execute(*arguments)


@pytest.fixture
def refusing(tmp_path, monkeypatch):
    with closing(connect(tmp_path / "x", mode="rwc")) as connection:
        create(connection)
    monkeypatch.setattr(schema, "connect", lambda path, **_: sqlite3.connect(path, factory=Refusing))
    return tmp_path / "x"


@pytest.mark.parametrize("times", [1, 9])
def test_a_reader_refused_for_a_moment_by_a_closing_writer_tries_again(refusing, monkeypatch, times):
    monkeypatch.setattr(Refusing, "left", times)
    with open_to_read(refusing, lenient=False) as connection:
        assert connection.execute("SELECT count(*) FROM tail").fetchone() == (1,)


@pytest.mark.parametrize(("times", "code"), [(10, sqlite3.SQLITE_READONLY), (1, sqlite3.SQLITE_IOERR)])
def test_a_reader_refused_for_good_or_for_another_reason_gets_a_typed_error(refusing, monkeypatch, times, code):
    monkeypatch.setattr(Refusing, "left", times)
    monkeypatch.setattr(Refusing, "code", code)
    with pytest.raises(RunError, match=r"cannot (open|read)"), open_to_read(refusing, lenient=False):
        pass
