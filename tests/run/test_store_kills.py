"""P3, P4: what was acknowledged survives the death of the process, a full disk, and a folder that is read-only."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from normlens.run.errors import RunError, RunFormatError, RunNotFoundError
from normlens.run.reading import Measurement
from normlens.run.store import open_run
from normlens.run.writer import RunWriter

PROGRAM = Path(__file__).with_name("killed_writer.py")
step_of = runpy.run_path(str(PROGRAM))["step_of"]


def run_program(*arguments: object) -> list[int]:
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return [int(line) for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]


def check_killed(folder, told, acknowledged):
    """Every file opens and holds all acknowledged steps and at most one more, whole; and it can be continued."""
    for kill, least in enumerate(acknowledged):
        path = folder / f"{kill}.sqlite"
        found = []
        try:
            found = list(open_run(path).with_readings())
        except (RunNotFoundError, RunFormatError):
            assert least < 0  # killed before there was a run
        steps = len(found) // 2
        assert max(least, 0) <= steps <= max(least, 0) + 1
        expected = [told(m) for step in range(steps) for m in step_of(kill, step)]
        assert [told(m) for m in found] == expected
        with RunWriter(path, {}, resume=True, first_step=steps) as writer:
            writer.write(step_of(kill, steps))
        assert open_run(path).steps("q") == list(range(steps + 1))
        assert not list(folder.glob(f"{kill}.sqlite-*"))


@pytest.mark.parametrize("log", ["log", "no-log"])
def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path, told, log):
    check_killed(tmp_path, told, run_program(tmp_path, 5, 0.1, log))


@pytest.mark.slow
@pytest.mark.parametrize("log", ["log", "no-log"])
def test_a_hundred_killed_writers_lose_nothing_that_they_acknowledged(tmp_path, told, log):
    acknowledged = run_program(tmp_path, 100, 0.1, log)
    assert sum(least > 0 for least in acknowledged) > 30  # kills in mid-writing; fewer on a busy machine
    check_killed(tmp_path, told, acknowledged)


@pytest.mark.parametrize("log", ["log", "no-log"])
def test_another_process_sees_whole_steps_while_the_writer_writes_closes_and_resumes(tmp_path, told, log):
    path = tmp_path / "0.sqlite"
    with subprocess.Popen([sys.executable, PROGRAM, tmp_path, "1", "1.5", log], stdout=subprocess.PIPE) as writer:
        seen = [0]
        while writer.poll() is None:
            try:
                found = [told(m) for m in open_run(path).with_readings()]
            except (RunNotFoundError, RunFormatError):
                assert seen == [0]  # it has not begun yet
                continue
            except RunError:
                if log == "log":
                    raise
                continue  # without a log, a reader can come at the moment of the death
            seen.append(len(found) // 2)
            assert found == [told(m) for step in range(seen[-1]) for m in step_of(0, step)]
        acknowledged = int(writer.stdout.read())
    seen.append(len(open_run(path).measurements) // 2)
    assert seen == sorted(seen)
    assert seen[-1] >= acknowledged > 0
    assert len(set(seen)) > (2 if log == "log" else 1)


def killed_run(folder: Path, steps: int) -> Path:
    """The file and the log of a run whose writer died without closing it."""
    script = (
        "import os, sys, runpy; from normlens.run.writer import RunWriter\n"
        "step_of = runpy.run_path(sys.argv[1])['step_of']\n"
        "writer = RunWriter(sys.argv[2], {'kill': 0})\n"
        "for step in range(int(sys.argv[3])): writer.write(step_of(0, step))\n"
        "os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script, PROGRAM, folder / "x", str(steps)], check=False)
    return folder / "x.sqlite"


def test_a_log_cut_at_any_place_gives_whole_steps_up_to_there(tmp_path, told):
    check_cut_logs(killed_run(tmp_path, 12), told, steps=12, every=1471)


@pytest.mark.slow
def test_a_log_cut_at_very_many_places_gives_whole_steps_up_to_there(tmp_path, told):
    check_cut_logs(killed_run(tmp_path, 40), told, steps=40, every=1009)


def check_cut_logs(path, told, steps, every):
    base, log = path.read_bytes(), path.with_name("x.sqlite-wal").read_bytes()
    counts, refused = [], 0
    for size in [*range(0, len(log), every), len(log)]:
        for file in path.parent.glob("x.sqlite*"):
            file.unlink()
        path.write_bytes(base)
        path.with_name("x.sqlite-wal").write_bytes(log[:size])
        try:
            found = [told(m) for m in open_run(path).with_readings()]
        except RunFormatError:  # cut before the tables were made
            refused += 1
            assert not counts
            continue
        counts.append(len(found) // 2)
        assert found == [told(m) for step in range(counts[-1]) for m in step_of(0, step)]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, steps)
    assert refused < 40 * 4096 / every


LIMITED = """
import os, resource, runpy, sys
from normlens.run.errors import RunError
from normlens.run.writer import RunWriter
step_of = runpy.run_path(sys.argv[1])["step_of"]
for limit in map(int, sys.argv[3:]):
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        step = -1
        try:
            with RunWriter(f"{sys.argv[2]}/{limit}", {}) as writer:
                for step in range(100):
                    writer.write(step_of(limit, step))
        except RunError:
            pass
        print(step, flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_write_that_fails_at_any_size_of_the_file_costs_no_acknowledged_step(tmp_path, told):
    limits = [1, 100, 4096, 9000, *range(20_000, 120_000, 7919)]
    command = [sys.executable, "-c", LIMITED, PROGRAM, tmp_path, *map(str, limits)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    acknowledged = [int(line) for line in printed.stdout.split()]
    assert printed.stderr == ""
    assert acknowledged[0] == -1
    assert max(acknowledged) > 5
    for limit, steps in zip(limits, acknowledged, strict=True):
        if steps < 0:
            continue
        found = [told(m) for m in open_run(tmp_path / str(limit)).with_readings()]
        assert found == [told(m) for step in range(steps) for m in step_of(limit, step)]


READ_ONLY = """
import os, sys
from normlens.run.errors import RunError
from normlens.run.store import open_run
from normlens.run.writer import RunWriter
if os.geteuid() == 0:
    os.setuid(65534)  # nobody: root may write anywhere
try:
    with open_run(sys.argv[1])._reading():
        print("steps", *open_run(sys.argv[1]).steps("q"))
except RunError as error:
    print(type(error).__name__, error)
try:
    RunWriter(sys.argv[1], {}, resume=True)
except RunError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def read_only():
    """``read_only(path)``: copy the run and what lies beside it to a read-only folder, and open it there."""
    folder = Path(tempfile.mkdtemp())  # not in tmp_path, which only its owner may enter

    def look(path: Path, *suffixes: str) -> list[str]:
        for suffix in ("", *suffixes):
            shutil.copy(f"{path}{suffix}", folder)
            (folder / f"{path.name}{suffix}").chmod(0o444)
        folder.chmod(0o555)
        command = [sys.executable, "-c", READ_ONLY, folder / path.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    yield look
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_finished_run_opens_in_a_read_only_folder(tmp_path, read_only):
    with RunWriter(tmp_path / "x", {}) as writer:
        for step in range(3):
            writer.write(step_of(0, step))
    opened, written = read_only(tmp_path / "x.sqlite")
    assert opened == "steps 0 1 2"
    assert written.startswith("RunError cannot write the run")


def test_a_killed_run_opens_in_a_read_only_folder_with_all_its_files(tmp_path, read_only):
    assert read_only(killed_run(tmp_path, 3), "-wal", "-shm")[0] == "steps 0 1 2"


def test_a_killed_run_without_its_index_says_what_to_do_in_a_read_only_folder(tmp_path, read_only):
    said = read_only(killed_run(tmp_path, 3), "-wal")[0]
    assert "RunError cannot open" in said
    assert "copy them all to such a folder and open it there" in said


def test_a_file_that_is_not_ours_to_read_is_a_typed_error(tmp_path):
    RunWriter(tmp_path / "x", {}).close()
    if os.geteuid() == 0:
        pytest.skip("root may read anything")
    (tmp_path / "x.sqlite").chmod(0)
    with pytest.raises(RunError, match=r"cannot open .*a folder that may be written to"):
        open_run(tmp_path / "x")


def test_every_acknowledged_measurement_is_one_of_the_program(told):
    """The oracle itself: distinct for every step, probe and kill, and the same when asked again."""
    tellings = {told(m) for kill in range(3) for step in range(3) for m in step_of(kill, step)}
    assert len(tellings) == 18
    assert told(step_of(1, 2)[0]) in tellings
    assert isinstance(step_of(1, 2)[0], Measurement)
