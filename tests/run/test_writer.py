from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from normlens.run.errors import RunCorruptError, RunError, RunExistsError, RunFormatError
from normlens.run.reading import Measurement, Reading
from normlens.run.store import open_run
from normlens.run.writer import RunWriter, run_path


def one(step: int, probe: str = "p") -> Measurement:
    return Measurement(step, probe, readings=(Reading("w", np.arange(3.0) + step, dims=("unit",)),))


def steps_in(path: Path) -> list[int]:
    return [m.step for m in open_run(path).measurements]


def test_the_suffix_may_be_left_out_and_dots_in_a_name_are_no_suffix():
    assert run_path("runs/bn") == run_path("runs/bn.sqlite") == Path("runs/bn.sqlite")
    assert run_path("lr=0.1") == Path("lr=0.1.sqlite")
    assert run_path("a.b/c.pt") == Path("a.b/c.pt.sqlite")


@pytest.mark.parametrize("name", ["x\0y", "\0", "d\0/x", "", ".", "/"])
def test_a_name_that_no_file_can_have_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=r"a run needs the name of a file, without NUL characters; got "):
        RunWriter(name, {})
    assert list(tmp_path.iterdir()) == []


def test_all_that_was_written_comes_back_to_the_last_bit(tmp_path, every_kind, told):
    with RunWriter(tmp_path / "x", {}) as writer:
        writer.write(every_kind)
    for back, made in zip(open_run(tmp_path / "x").with_readings(), every_kind, strict=True):
        assert told(back)[:5] == told(made)[:5]
        np.testing.assert_array_equal([back.seconds, back.elapsed], [made.seconds, made.elapsed])
        for ours, theirs in zip(back.readings, made.readings, strict=True):
            little = theirs.array.astype(theirs.array.dtype.newbyteorder("<"))
            assert (ours.array.dtype, ours.array.shape, ours.array.tobytes()) == (
                little.dtype, little.shape, little.tobytes(),
            )  # fmt: skip
            assert (ours.name, ours.layer, ours.units, ours.dims, ours.n) == (
                theirs.name, theirs.layer, theirs.units, theirs.dims, theirs.n,
            )  # fmt: skip


def test_exactly_one_file_remains_after_close_and_closing_twice_is_harmless(tmp_path):
    writer = RunWriter(tmp_path / "deep" / "folder" / "x", {})
    writer.write([one(1)])
    writer.close()
    writer.close()
    assert [p.name for p in (tmp_path / "deep" / "folder").iterdir()] == ["x.sqlite"]
    with pytest.raises(RunError, match=r"cannot write the run .*closed"):
        writer.write([one(2)])


def test_a_run_that_is_there_is_not_overwritten(tmp_path):
    RunWriter(tmp_path / "x", {"seed": 1}).close()
    before = (tmp_path / "x.sqlite").read_bytes()
    with pytest.raises(RunExistsError, match=r"holds a run already; choose another name, remove it, or pass resume"):
        RunWriter(tmp_path / "x.sqlite", {})
    assert (tmp_path / "x.sqlite").read_bytes() == before


def test_resuming_counts_on_and_says_where_it_began(tmp_path):
    for session in range(3):
        with RunWriter(tmp_path / "x", {"seed": session}, resume=True, first_step=10 * session) as writer:
            writer.write([one(10 * session)])
    run = open_run(tmp_path / "x")
    assert [(s["seed"], s["first_step"]) for s in run.sessions] == [(0, 0), (1, 10), (2, 20)]
    assert [m.step for m in run.measurements] == [0, 10, 20]


def test_a_step_is_written_whole_or_not_at_all(tmp_path):
    with RunWriter(tmp_path / "x", {}) as writer:
        writer.write([one(1)])
        with pytest.raises(RunError, match=r"cannot write the run .*too large"):
            writer.write([one(2), one(2**70)])
        writer.write([one(3)])
    assert steps_in(tmp_path / "x") == [1, 3]


def test_nothing_is_made_when_the_header_is_no_json(tmp_path):
    with pytest.raises(TypeError, match="keys must be str"):
        RunWriter(tmp_path / "x", {(1, 2): 3})
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_a_typed_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file" / "x", tmp_path / ("n" * 5000)):
        with pytest.raises(RunError, match="cannot write the run"):
            RunWriter(place, {})


@pytest.mark.parametrize("damage", ["foreign", "text", "tail"])
def test_resuming_what_is_no_whole_run_is_refused_and_changes_no_byte(tmp_path, damage):
    path = tmp_path / "x.sqlite"
    if damage == "text":
        path.write_bytes(b"dear diary " * 1000)
    else:
        RunWriter(path, {}).close()
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE extra (a)" if damage == "foreign" else "UPDATE tail SET readings=5")
            connection.commit()
    before = path.read_bytes()
    with pytest.raises(RunError, match={"foreign": "does not hold", "text": "not a data", "tail": "damaged"}[damage]):
        RunWriter(path, {}, resume=True)
    if damage != "tail":
        assert path.read_bytes() == before
    assert issubclass(RunFormatError, RunError)


def test_a_fork_must_not_write_and_leaves_the_file_alone(tmp_path):
    script = """
import os, sys
from normlens.run.writer import RunWriter
from normlens.run.reading import Measurement
writer = RunWriter(sys.argv[1], {})
writer.write([Measurement(1, "p")])
child = os.fork()
if child == 0:
    try:
        writer.write([Measurement(2, "p")])
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    writer.close()
    sys.exit(7)  # runs the clean-up of the interpreter, unlike os._exit
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
writer.write([Measurement(3, "p")])
os._exit(0)  # the log must still be there: nothing is folded now
"""
    command = [sys.executable, "-W", "error", "-c", script, tmp_path / "x"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "RunError" in done.stdout
    assert "a fork must not write to it" in done.stdout
    assert done.stderr == ""
    assert steps_in(tmp_path / "x") == [1, 3]


def test_the_second_of_two_writers_wins_and_the_first_is_told(tmp_path):
    first = RunWriter(tmp_path / "x", {})
    first.write([one(1)])
    second = RunWriter(tmp_path / "x", {}, resume=True, first_step=2)
    second.write([one(2)])
    with pytest.raises(RunError, match=r"another process has appended to this run; only one may write"):
        first.write([one(9)])
    first.close()
    second.write([one(3)])
    second.close()
    assert steps_in(tmp_path / "x") == [1, 2, 3]
    assert len(list(tmp_path.iterdir())) == 1


def test_of_two_that_begin_the_same_run_at_once_one_is_refused(tmp_path, monkeypatch):
    """Both have seen that nothing is there when the first makes it."""
    exists = Path.touch

    def late(path, *args, **kwargs):
        monkeypatch.setattr(Path, "touch", exists)
        RunWriter(tmp_path / "x", {"seed": 1}).close()
        return exists(path, *args, **kwargs)

    monkeypatch.setattr(Path, "touch", late)
    with pytest.raises(RunExistsError, match="holds a run already"):
        RunWriter(tmp_path / "x", {"seed": 2})
    assert [s["seed"] for s in open_run(tmp_path / "x").sessions] == [1]


@pytest.mark.parametrize("what", ["folder", "file", "log", "replaced"])
def test_a_writer_whose_file_is_taken_away_does_not_acknowledge(tmp_path, what):
    folder = tmp_path / "runs"
    with RunWriter(folder / "x", {}) as writer:
        writer.write([one(1)])
        if what == "folder":
            shutil.rmtree(folder)
        elif what == "replaced":
            (tmp_path / "other").write_bytes(b"")
            os.replace(tmp_path / "other", folder / "x.sqlite")
        else:
            (folder / {"file": "x.sqlite", "log": "x.sqlite-wal"}[what]).unlink()
        for _ in range(2):
            with pytest.raises(RunError, match=r"cannot write the run .*No such file|was removed or replaced"):
                writer.write([one(2)])


def test_the_writer_stays_with_its_file_when_the_process_changes_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RunWriter("x", {}) as writer:
        run = open_run("x")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir("elsewhere")
        writer.write([one(1)])
        assert [m.step for m in run.measurements] == [1]


@pytest.mark.parametrize("wal", [True, False])
def test_an_acknowledged_step_is_synchronized_as_its_journal_needs(tmp_path, monkeypatch, wal):
    """With a log NORMAL survives a killed process; with a rollback journal, as on network disks, only FULL does."""
    without_log(monkeypatch, wal)
    with RunWriter(tmp_path / "x", {}) as writer:
        connection = writer._connection
        found = (
            connection.execute("PRAGMA journal_mode").fetchone(),
            connection.execute("PRAGMA synchronous").fetchone(),
        )
        assert found == ((("wal",), (1,)) if wal else (("delete",), (2,)))
        writer.write([one(1)])
        assert steps_in(tmp_path / "x") == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["x.sqlite"]


def without_log(monkeypatch, wal):
    """SQLite's VFS unix-none has no shared memory, and so no write-ahead log: what a network disk looks like."""
    opened = sqlite3.connect

    def connect(address, **settings):
        return opened(address if wal else f"{address}&vfs=unix-none", **settings)

    monkeypatch.setattr("normlens.run.schema.sqlite3.connect", connect)


def test_a_full_disk_is_a_typed_error_and_costs_only_what_was_not_acknowledged(tmp_path):
    with RunWriter(tmp_path / "x", {}) as writer:
        pages = writer._connection.execute("PRAGMA page_count").fetchone()[0]
        writer._connection.execute(f"PRAGMA max_page_count={pages + 2}")
        written = 0
        with pytest.raises(RunError, match=r"cannot write the run .*database or disk is full"):
            for written in range(10_000):
                writer.write([one(written)])
        assert written > 1
        writer._connection.execute("PRAGMA max_page_count=10000")
        writer.write([one(written + 1)])
    assert steps_in(tmp_path / "x") == [*range(written), written + 1]


def test_a_writer_that_fails_to_open_holds_no_lock(tmp_path):
    path = tmp_path / "x.sqlite"
    RunWriter(path, {}).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE tail SET checksum=0")
        connection.commit()
    with pytest.raises(RunCorruptError, match="the count of its records is damaged"):
        RunWriter(path, {}, resume=True)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode=DELETE").fetchone() == ("delete",)
