"""P4, P6: a damaged file gives a typed error, or exactly what was written; in recovery, a part of what was written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from normlens.run.errors import RunCorruptError, RunError
from normlens.run.reading import Measurement, Reading
from normlens.run.store import Run, open_run
from normlens.run.writer import RunWriter

PATTERNS = (0xFF, 0x01, 0x80)


@pytest.fixture
def everything(contents):
    """``everything(run)``: what each way of asking answers."""

    def ask(run: Run):
        arrays = {
            (probe, layer, name): (run.array(probe, name, layer=layer).values.tobytes())
            for probe in run.probes
            for layer, name in run.names(probe)
        }
        tables = {probe: run.frame(probe).to_csv() for probe in run.probes}
        return (*contents(run), run.header, arrays, tables, [run.steps(probe) for probe in run.probes])

    return ask


@pytest.fixture
def put(tmp_path):
    """``put(raw)``: a file of these bytes, and none beside it (a flip may call for a log)."""

    def write(raw: bytes) -> Path:
        for file in tmp_path.glob("damaged.sqlite*"):  # a new file each time: ext4 flushes one that is truncated
            file.unlink()
        (tmp_path / "damaged.sqlite").write_bytes(raw)
        return tmp_path / "damaged.sqlite"

    return write


@pytest.fixture
def verdict(put):
    """``verdict(raw, ask, truth)``: "same" or the name of the typed error; anything else fails the test."""

    def judge(raw: bytes, ask, truth) -> str:
        try:
            found = ask(open_run(put(raw)))
        except RunError as error:
            return type(error).__name__
        assert found == truth
        return "same"

    return judge


@pytest.fixture
def recovered(put, contents):
    """``recovered(raw, truth)``: how many measurements recovery yields, all true; -1 for a typed error."""

    def recover(raw: bytes, truth) -> int:
        sessions, measurements = truth
        try:
            run = open_run(put(raw), recover=True)
            found = contents(run)
        except RunError:
            return -1
        assert all(session in sessions for session in found[0])
        assert len(set(found[1])) == len(found[1])
        assert set(found[1]) <= set(measurements)
        if found != truth:
            assert run.damage
        return len(found[1])

    return recover


def flipped(raw: bytes, place: int, pattern: int) -> bytes:
    return raw[:place] + bytes([raw[place] ^ pattern]) + raw[place + 1 :]


def test_a_flipped_byte_is_an_error_or_changes_nothing(small_file, everything, verdict):
    raw, truth = small_file[0].read_bytes(), everything(open_run(small_file[0]))
    rng = np.random.default_rng(0)
    used = np.flatnonzero(np.frombuffer(raw, np.uint8))
    places = np.concatenate([rng.choice(used, 250), rng.integers(0, len(raw), 50)])
    tally = Counter(verdict(flipped(raw, p, 1 << rng.integers(8)), everything, truth) for p in places)
    assert tally["RunCorruptError"] > 100
    assert tally["same"] > 10


def test_recovery_from_a_flipped_byte_yields_true_measurements_alone(small_file, contents, recovered):
    raw, truth = small_file[0].read_bytes(), contents(open_run(small_file[0]))
    rng = np.random.default_rng(1)
    places = rng.choice(np.flatnonzero(np.frombuffer(raw, np.uint8)), 300)
    counts = Counter(recovered(flipped(raw, p, 1 << rng.integers(8)), truth) for p in places)
    assert sum(counts[n] for n in (4, 5)) > 150  # most flips cost one measurement at the most


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_byte_flipped_is_an_error_or_changes_nothing(small_file, contents, verdict, recovered):
    raw, truth = small_file[0].read_bytes(), contents(open_run(small_file[0]))
    tally: Counter[str] = Counter()
    for place, byte in enumerate(raw):
        for pattern in PATTERNS if byte else PATTERNS[place % 3 :][:1]:
            tally[verdict(flipped(raw, place, pattern), contents, truth)] += 1
            if byte and pattern == 0x01:
                tally[f"recovered {recovered(flipped(raw, place, pattern), truth)}"] += 1
    print(dict(tally))
    assert tally["RunCorruptError"] > 3000


def test_two_flips_at_once_are_an_error_or_change_nothing(small_file, contents, verdict, recovered):
    raw, truth = small_file[0].read_bytes(), contents(open_run(small_file[0]))
    rng = np.random.default_rng(2)
    used = np.flatnonzero(np.frombuffer(raw, np.uint8))
    for one, other in rng.choice(used, (150, 2)):
        twice = flipped(flipped(raw, one, int(rng.integers(1, 256))), other, int(rng.integers(1, 256)))
        verdict(twice, contents, truth)
        recovered(twice, truth)


def test_a_page_that_was_never_written_is_an_error(small_file, contents, verdict, recovered):
    """A torn write: a page of zeros, of noise, or the contents of another page, in the place of each page."""
    raw, truth = small_file[0].read_bytes(), contents(open_run(small_file[0]))
    noise = np.random.default_rng(3).bytes(4096)
    for start in range(0, len(raw), 4096):
        for page in (bytes(4096), noise, *(raw[at : at + 4096] for at in range(0, len(raw), 4096) if at != start)):
            torn = raw[:start] + page + raw[start + 4096 :]
            assert verdict(torn, contents, truth) != "same"
            recovered(torn, truth)


@pytest.fixture
def long_file(tmp_path) -> Path:
    """A run of 120 steps in some 50 pages, so that the trees of its tables have inner pages."""
    path = tmp_path / "long.sqlite"
    rng = np.random.default_rng(4)
    with RunWriter(path, {"name": "long"}) as writer:
        for step in range(120):
            reading = Reading("w", rng.standard_normal(150), dims=("unit",), layer="layer" * 20)
            writer.write([Measurement(step, "p", readings=(reading,)), Measurement(step, "q", "failed", "x" * 200)])
    return path


def test_a_truncated_file_is_an_error_and_recovery_reads_up_to_the_cut(long_file, contents, verdict, recovered):
    raw, truth = long_file.read_bytes(), contents(open_run(long_file))
    rng = np.random.default_rng(5)
    sizes = sorted({*map(int, rng.integers(0, len(raw), 30)), *range(4096, len(raw), 8 * 4096), len(raw) - 1})
    counts = []
    for size in sizes:
        assert verdict(raw[:size], contents, truth) in {"RunCorruptError", "RunFormatError"}
        counts.append(recovered(raw[:size], truth))
    assert np.corrcoef(sizes, counts)[0, 1] > 0.95  # what lies before the cut is there
    assert counts[-1] > 200


@pytest.mark.slow
def test_a_file_truncated_at_200_places_is_an_error_and_recovery_reads_up_to_the_cut(
    long_file, contents, verdict, recovered
):
    raw, truth = long_file.read_bytes(), contents(open_run(long_file))
    rng = np.random.default_rng(6)
    tally: Counter[str] = Counter()
    for size in rng.integers(0, len(raw), 200):
        tally[verdict(raw[:size], contents, truth)] += 1
        count = recovered(raw[:size], truth)
        tally["recovered nothing" if count < 1 else "recovered some"] += 1
    print(dict(tally))
    assert tally["same"] == 0
    assert tally["recovered some"] > 120


@pytest.mark.slow
def test_a_small_file_truncated_at_every_byte_is_an_error(small_file, contents, verdict, recovered):
    raw, truth = small_file[0].read_bytes(), contents(open_run(small_file[0]))
    tally = Counter(verdict(raw[:size], contents, truth) for size in range(len(raw)))
    print(dict(tally))
    assert tally["same"] == 0
    for size in range(0, len(raw), 53):
        recovered(raw[:size], truth)


def test_bytes_after_the_end_change_nothing(small_file, contents, verdict):
    raw, truth = small_file[0].read_bytes(), contents(open_run(small_file[0]))
    for more in (b"x", bytes(4096), raw):
        verdict(raw + more, contents, truth)


def test_the_error_of_a_damaged_run_says_how_to_read_what_is_whole(small_file):
    path, _ = small_file
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(RunCorruptError, match=r"small\.sqlite is damaged: .*open_run\(path, recover=True\) reads what"):
        open_run(path)


def test_recovery_says_what_it_left_out(small_file, told):
    path, made = small_file
    raw = path.read_bytes()
    place = raw.index(b"offset")
    path.write_bytes(flipped(raw, place, 0x20))
    run = open_run(path, recover=True)
    assert [told(m) for m in run.with_readings()] == [told(m) for m in made if m.step != 4]  # the last lies first
    assert len(run.damage) == 1
    assert "does not match its checksum" in run.damage[0]
    with pytest.raises(RunCorruptError, match=r"reading \d+: the record does not match its checksum"):
        list(open_run(path).with_readings())


def test_a_damaged_session_does_not_bring_back_what_it_measured_again(small_file, told):
    path, made = small_file
    raw = path.read_bytes()
    path.write_bytes(flipped(raw, raw.index(b'"second"'), 0x01))
    run = open_run(path, recover=True)
    assert [told(m) for m in run.with_readings()] == [told(m) for m in made]
    assert "2 sessions were written, 1 are whole" in run.damage[0]
