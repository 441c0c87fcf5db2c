from __future__ import annotations

import math

import pytest

from normlens.report.cost import Overhead, overhead
from normlens.run.reading import Measurement, Reading
from normlens.run.store import open_run
from normlens.run.writer import RunWriter


def test_the_closing_record_is_taken_whatever_its_status(write_measurements):
    for status in ("ok", "note"):
        readings = (Reading("bare_seconds", 20.0), Reading("lens_seconds", 3.0), Reading("overhead", 0.15))
        run = write_measurements([Measurement(9, "lens", status, readings=readings)], {"budget": 0.1})
        assert str(overhead(run)) == "the lens took 3 s on top of 20 s of bare training: 15.0 % (budget 10 %)"


def test_a_run_that_was_killed_is_counted_from_its_records(write_measurements):
    run = write_measurements([
        Measurement(0, "a", seconds=0.5, elapsed=0.0), Measurement(5, "a", "failed", seconds=0.25, elapsed=10.0),
        Measurement(9, "b", seconds=0.25, elapsed=20.0),
    ])  # fmt: skip
    found = overhead(run)
    assert (found.bare, found.lens, found.closed) == (20.0, 1.0, False)
    assert found.fraction == 0.05
    assert "no budget; the run was not closed" in str(found)


@pytest.mark.parametrize("budget", [None, "much", True, [1]])
def test_a_budget_that_is_no_number_is_none(write_measurements, budget):
    assert math.isnan(overhead(write_measurements([], {"budget": budget})).budget)


def test_before_any_training_there_is_no_fraction():
    assert math.isnan(Overhead(0.0, 1.0).fraction)


def test_the_sessions_of_a_resumed_run_are_added_up(tmp_path):
    def closing(step, bare, lens):
        return Measurement(step, "lens", readings=(Reading("bare_seconds", bare), Reading("lens_seconds", lens)))

    with RunWriter(tmp_path / "run", {}) as writer:
        writer.write(
            [Measurement(0, "a", seconds=1.0), Measurement(5, "a", seconds=1.0, elapsed=10.0), closing(9, 18.0, 2)]
        )
    with RunWriter(tmp_path / "run", {}, resume=True, first_step=9) as writer:  # hides the closing record of step 9
        writer.write([Measurement(12, "a", seconds=0.5, elapsed=6.0), closing(20, 20.0, 0.75)])
    found = overhead(open_run(tmp_path / "run"))
    assert (found.bare, found.lens, found.closed) == (30.0, 2.75, True)
