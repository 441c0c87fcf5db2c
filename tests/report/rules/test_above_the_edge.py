from __future__ import annotations

import pytest

from normlens.report.rules.above_the_edge import above_the_edge
from support.over_time import over_time


def find(write, ratio, steps=(0, 50, 100, 150)):
    return above_the_edge(over_time(write, "edge_of_stability", steps=steps[: len(ratio)], ratio=ratio))


@pytest.mark.parametrize(
    ("ratio", "steps"),
    [
        ((0.1, 1.1, 1.3), (0, 50, 100)),  # hovering
        ((1.015, 0.5, 0.5), (0, 50, 100)),  # within two standard errors
        ((None, 200.0, 100.0, 0.1), (0, 1, 5, 20)),  # Adam's first steps
        ((0.1, 10.0, 2.0, 0.1), (0, 20, 50, 100)),  # a unit that woke up
        ((0.1, 2.0, 2.0, 0.5, 2.0), (0, 20, 50, 100, 150)),  # not in a row
    ],
)
def test_hovering_at_the_edge_and_moments_of_few_gradients_are_no_finding(write_measurements, ratio, steps):
    assert find(write_measurements, ratio, steps) == []


@pytest.mark.parametrize(
    ("ratio", "step", "value", "threshold"),
    [((1.2, 0.5, 0.5), 0, 1.2, 1.0), ((0.1, 1.6, 1.8, 4.0), 150, 4.0, 1.5), ((1.6, 1.7, 0.5), 0, 1.6, 1.0)],
)
def test_the_first_measurement_beyond_is_named(write_measurements, ratio, step, value, threshold):
    (finding,) = find(write_measurements, ratio)
    assert (finding.severity, finding.step) == ("look", step)
    assert finding.evidence["sharpness_over_edge"] == value
    assert finding.evidence["threshold"] == threshold


def test_the_advice_brings_the_rate_below_the_edge(write_measurements):
    (finding,) = find(write_measurements, (3.2, 0.5, 0.5))
    assert "Divide the learning rate by 4 " in finding.advice  # 3.2 / 4 < 1
