from __future__ import annotations

from normlens.report.rules.undecided import undecided
from support.over_time import over_time


def test_a_probe_that_never_has_its_answer_is_noted(write_measurements):
    (finding,) = undecided(over_time(write_measurements, "condition_number", kappa_lower=[1e3, 1e4]))
    assert (finding.severity, finding.probe, finding.step) == ("note", "condition_number", 0)
    assert "in any of 2 measurements: the smallest eigenvalue" in finding.message


def test_one_answer_is_enough(write_measurements):
    run = over_time(write_measurements, "condition_number", kappa=[None, 1e4], kappa_lower=[1e3, 1e4])
    assert undecided(run) == []
