from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import pytest

from normlens.run.errors import NotRecordedError, RunError, RunFormatError, RunNotFoundError
from normlens.run.reading import Measurement, Reading
from normlens.run.store import open_run
from normlens.run.writer import RunWriter


def scalar(step, value, probe="p", **facts):
    return Measurement(step, probe, readings=(Reading("w", float(value)),), **facts)


def test_a_file_says_what_was_written_into_it(small_file, told, contents):
    path, made = small_file
    sessions = [{"seed": 1, "name": "first", "first_step": 0}, {"seed": 2, "name": "second", "first_step": 2}]
    assert contents(open_run(path)) == (sessions, [told(m) for m in made])
    run = open_run(path.with_suffix(""))
    assert (run.name, run.header, run.damage) == ("small", sessions[-1], ())
    assert run.steps("elimination") == [0, 1, 2, 3, 4]
    assert run.names("elimination") == [("block1.relu", "offset"), ("", "loss")]


@pytest.mark.parametrize("seed", range(8))
def test_a_resumed_session_hides_what_it_measures_again(tmp_path, seed, told):
    """The oracle: a plain list, from which each session first removes all records at or after its first step."""
    rng = np.random.default_rng(seed)
    visible: list[Measurement] = []
    for session in range(5):
        first = int(rng.integers(0, 12))
        visible = [m for m in visible if m.step < first]
        with RunWriter(tmp_path / "x", {"session": session}, resume=True, first_step=first) as writer:
            for step in first + np.sort(rng.integers(0, 9, size=rng.integers(0, 6))):
                batch = [scalar(step, rng.standard_normal(), probe) for probe in "pq"[: rng.integers(1, 3)]]
                writer.write(batch)
                visible += batch
    run = open_run(tmp_path / "x")
    assert [told(m) for m in run.with_readings()] == [told(m) for m in visible]
    for probe in "pq":
        assert run.steps(probe) == sorted({m.step for m in visible if m.probe == probe})
        for step in run.steps(probe):
            expected = [r.value for m in visible if (m.probe, m.step) == (probe, step) for r in m.readings]
            assert [r.value for r in run.readings(probe, step)] == expected


def test_what_failed_or_was_never_measured_is_an_error_that_names_what_there_is(write_measurements):
    run = write_measurements([scalar(1, 2), scalar(4, 2), Measurement(2, "p", "failed", "ValueError: no")])
    with pytest.raises(NotRecordedError, match=r"'p' was not measured at step 2; steps: \[1, 4\]"):
        run.readings("p", 2)
    with pytest.raises(NotRecordedError, match=r"holds no reading of probe 'q'; it has: p"):
        run.frame("q")
    with pytest.raises(NotRecordedError, match=r"no reading p/v for layer '' at step None"):
        run.array("p", "v")
    assert run.probes == ["p"]
    assert [m.message for m in run.measurements] == ["", "", "ValueError: no"]


def test_an_array_over_all_steps_is_the_stack_of_those_at_each(small_file):
    run = open_run(small_file[0])
    values, coords = run.array("elimination", "offset", layer="block1.relu")
    np.testing.assert_array_equal(coords["step"], [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(coords["channel"], range(4))
    for row, step in zip(values, coords["step"], strict=True):
        np.testing.assert_array_equal(row, run.array("elimination", "offset", layer="block1.relu", step=step).values)
        np.testing.assert_array_equal(row, np.arange(4.0) / 3 + step + 10 * (step >= 2))


def spectrum(step, grid):
    density = np.exp(-(np.asarray(grid) ** 2)) + step
    return Measurement(step, "p", readings=(Reading("density", density, dims=("x",)), Reading("x", grid, dims=("x",))))


def test_a_reading_named_like_a_dimension_gives_its_coordinates(write_measurements):
    grid = np.array([0.5, np.nan, 2.0])
    run = write_measurements([spectrum(0, grid), spectrum(5, grid)])
    np.testing.assert_array_equal(run.array("p", "density").coords["x"], grid)


def test_arrays_whose_coordinates_or_shapes_change_are_not_stacked(write_measurements):
    moved = write_measurements([spectrum(0, np.array([0.0, 1.0])), spectrum(5, np.array([0.0, 2.0]))])
    with pytest.raises(ValueError, match=r"p/density of '' changes its 'x' over the run; pass step="):
        moved.array("p", "density")
    np.testing.assert_array_equal(moved.array("p", "density", step=0).coords["x"], [0.0, 1.0])
    grown = write_measurements([spectrum(0, np.zeros(2)), spectrum(5, np.zeros(3))])
    with pytest.raises(ValueError, match=r"p/density of '' changes its shape over the run; pass step="):
        grown.array("p", "density")


def test_a_clock_that_runs_backwards_is_recorded_as_it_ran(write_measurements):
    run = write_measurements([scalar(1, 0, elapsed=5.0, seconds=-1.0), scalar(2, 0, elapsed=-3.0)])
    assert [(m.elapsed, m.seconds) for m in run.measurements] == [(5.0, -1.0), (-3.0, 0.0)]


@pytest.mark.parametrize(
    "name", ["a?mode=memory", "a#b", "100%25", "a b", "é☕", "a&b=c", "-rf", "'; DROP TABLE", "a.b"]
)
def test_any_name_that_a_file_can_have_will_do(tmp_path, name):
    with RunWriter(tmp_path / name, {}) as writer:
        writer.write([scalar(1, 0.5)])
    assert [p.name for p in tmp_path.iterdir()] == [f"{name}.sqlite"]
    assert open_run(tmp_path / name).readings("p", 1)[0].value == 0.5


@pytest.mark.parametrize("name", ["missing", "folder", "n" * 5000, "nul\0"])
def test_what_is_not_there_is_a_typed_error_that_says_where_it_looked(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match=r"there is no run at .*neither|cannot open the run .*too long|without NUL"):
        open_run(tmp_path / name)
    assert issubclass(RunNotFoundError, FileNotFoundError)


@pytest.mark.parametrize("raw", [b"", b"x", b"dear diary " * 1000, b"SQLite format 3\0", bytes(8192)])
@pytest.mark.parametrize("recover", [False, True])
def test_another_file_is_not_taken_for_a_run(tmp_path, raw, recover):
    (tmp_path / "x.sqlite").write_bytes(raw)
    with pytest.raises(RunFormatError, match=r"not a normlens run|schema version 0|does not hold the tables"):
        open_run(tmp_path / "x", recover=recover)


def test_a_run_can_be_read_while_it_is_written_and_afterwards(tmp_path):
    with RunWriter(tmp_path / "x", {}) as writer:
        run = open_run(tmp_path / "x")
        for step in range(5):
            assert run.steps("p") == list(range(step))
            writer.write([scalar(step, step), scalar(step, step, "q")])
        rows = run.with_readings()
        next(rows)  # a reader that has stopped half-way
    assert [p.name for p in tmp_path.iterdir()] == ["x.sqlite"]
    assert [m.step for m in rows] == [0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_a_reader_that_keeps_the_file_open_blocks_neither_write_nor_close(tmp_path):
    writer = RunWriter(tmp_path / "x", {})
    writer.write([scalar(0, 0)])
    with closing(sqlite3.connect(tmp_path / "x.sqlite")) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM measurement").fetchone() == (1,)
        start = time.perf_counter()
        writer.write([scalar(1, 1)])
        writer.close()
        assert time.perf_counter() - start < 5  # the lock's time limit is 30 s
        assert reader.execute("SELECT count(*) FROM measurement").fetchone() == (1,)
    assert open_run(tmp_path / "x").steps("p") == [0, 1]


def run_python(script, *arguments):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_reading_and_writing_need_no_torch_and_pandas_only_for_a_table(small_file):
    script = """
import sys, json
import normlens.run.writer
from normlens.run.store import open_run
run = open_run(sys.argv[1])
run.array("elimination", "loss"), run.header, list(run.with_readings())
before = [name for name in ("torch", "pandas", "matplotlib") if name in sys.modules]
rows = len(run.frame("elimination"))
print(json.dumps([before, rows, [name for name in ("torch", "pandas") if name in sys.modules]]))
"""
    assert json.loads(run_python(script, small_file[0])) == [[], 25, ["pandas"]]
