from __future__ import annotations

from normlens.report.rules.saturated import saturated
from support.over_time import over_time


def find(write, *share):
    units, slope = [3.0] * len(share), [0.02] * len(share)
    return saturated(over_time(write, "saturation", "tanh", saturated=share, saturated_units=units, slope=slope))


def test_half_of_the_values_is_sick_and_less_is_nothing(write_measurements):
    assert find(write_measurements, 0.9, 0.49) == []
    (finding,) = find(write_measurements, 0.1, 0.5)
    assert (finding.severity, finding.layer, finding.step) == ("sick", "tanh", 10)
    assert finding.evidence["saturated"] == finding.evidence["threshold"] == 0.5


def test_it_is_told_whether_it_was_so_from_the_start(write_measurements):
    assert "weights or inputs are too large" in find(write_measurements, 0.9, 0.8)[0].message
    assert "since then" in find(write_measurements, 0.1, 0.8)[0].message
