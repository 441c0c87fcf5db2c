from __future__ import annotations

import math

import pytest

from normlens.report.rules.diverged import diverged
from normlens.run.reading import Measurement, Reading


def losses(write_measurements, *values, error=math.nan):
    return write_measurements(
        [Measurement(i, "training_curve", readings=(Reading("loss", v, error=error),)) for i, v in enumerate(values)]
    )


@pytest.mark.parametrize(
    ("values", "severity", "step"),
    [
        ((2.0, 1.0, 3.0, 4.0), "sick", 2),
        ((2.0, 1.0, math.nan), "sick", 2),
        ((2.0, math.inf, math.inf), "sick", 1),
        ((math.nan,), "sick", 0),
        ((2.0, 0.05, 0.04, 0.6), "look", 3),
    ],
)
def test_a_loss_that_ends_badly_is_found_at_the_step_from_which_it_stayed_so(
    write_measurements, values, severity, step
):
    (finding,) = diverged(losses(write_measurements, *values))
    assert (finding.severity, finding.step, finding.probe) == (severity, step, "training_curve")


@pytest.mark.parametrize(
    "values",
    [(2.0, 1.0, 0.5), (2.0, 5.0, 1.0), (2.0,), (2.0, 2.0), (2.0, 1e-6, 1e-4), (2.0, math.nan, 1.0), (2.0, 0.1, 0.9)],
)
def test_a_loss_that_ends_well_is_no_finding(write_measurements, values):
    assert diverged(losses(write_measurements, *values)) == []


def test_a_rise_within_the_recorded_errors_is_no_finding(write_measurements):
    assert diverged(losses(write_measurements, 2.0, 2.2, error=0.1)) == []  # 2 sqrt(2) 0.1 = 0.28
    (finding,) = diverged(losses(write_measurements, 2.0, 2.3, error=0.1))
    assert finding.evidence["threshold"] == pytest.approx(2 + 2 * math.sqrt(2) * 0.1)
    assert finding.evidence["error"] == 0.1
