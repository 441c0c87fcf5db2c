from __future__ import annotations

import math

import pytest

from normlens.report.rules.diverged import diverged
from normlens.run.reading import Measurement, Reading
from support.over_time import measurements


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


def test_a_loss_that_was_above_its_start_and_has_not_come_below_nine_tenths_of_it_is_lost(write_measurements):
    (finding,) = diverged(losses(write_measurements, 2.0, 1.9, 50.0, 1.85))
    assert (finding.severity, finding.step) == ("sick", 2)
    assert "rose to 50" in finding.message
    assert diverged(losses(write_measurements, 2.0, 1.9, 50.0, 1.75)) == []


def test_a_hundredth_is_noise_where_no_error_is_known(write_measurements):
    assert diverged(losses(write_measurements, 2.0, 2.015)) == []
    assert len(diverged(losses(write_measurements, 2.0, 2.025))) == 1


def test_the_layer_whose_weights_doubled_first_is_where_it_began(write_measurements):
    curve = measurements("training_curve", loss=[2.0, 3.0, 4.0])
    early = measurements("weight_dynamics", "early", norm=[1.0, 2.5, 3.0])
    more = measurements("weight_dynamics", "more", norm=[1.0, 4.0, 5.0])
    late = measurements("weight_dynamics", "late", norm=[1.0, 1.5, 99.0])
    (finding,) = diverged(write_measurements([*curve, *late, *early, *more]))
    assert finding.layer == "more"
    assert "It began in more, whose weights grew 4 times." in finding.message
    (finding,) = diverged(write_measurements(curve))
    assert finding.layer == ""
