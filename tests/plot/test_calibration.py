from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from normlens.plot import calibration, calibration_data
from normlens.run.reading import Measurement, Reading

STYLES = {"clean": "--", "noisy": ":", "calibrated": "-"}


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def measured(clean, noisy, calibrated, step=0):
    values = {"clean": clean, "noisy": noisy, "calibrated": calibrated}
    readings = [Reading(f"accuracy_{state}", value, error=0.01, n=100) for state, value in values.items()]
    readings += [Reading(f"ece_{state}", 0.1, error=0.01, n=100) for state in values]
    return Measurement(step, "calibration", readings=tuple(readings))


def test_dashed_is_clean_dotted_is_noisy_and_solid_is_calibrated(healthy_run):
    ax = calibration(healthy_run, Figure().add_subplot())
    data = calibration_data(healthy_run)
    for panel, kind in zip(ax.child_axes, ("accuracy", "ece"), strict=True):
        for state, style in STYLES.items():
            rows = data[data["name"] == f"{kind}_{state}"]
            (line,) = [line for line in panel.lines if line.get_linestyle() == style]
            np.testing.assert_array_equal(line.get_xdata(), rows["step"])
            np.testing.assert_array_equal(line.get_ydata(), rows["value"])


def test_a_calibration_that_changes_nothing_is_not_drawn(write_measurements):
    steps = [measured(0.9, noisy, noisy, step) for step, noisy in ((0, 0.5), (10, math.nan))]
    ax = calibration(write_measurements(steps), Figure().add_subplot())
    for panel in ax.child_axes:
        assert [line.get_linestyle() for line in panel.lines if len(line.get_xdata()) == 2] == ["--", ":"]
        assert not panel.collections


def test_the_band_is_one_standard_error_of_the_calibrated_accuracy(write_measurements):
    ax = calibration(write_measurements([measured(0.9, 0.5, 0.8, step) for step in (0, 10)]), Figure().add_subplot())
    (band,) = ax.child_axes[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((0.79, 0.81))


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ((0.9, 0.5, 0.8), "Noise on the weights costs 40 points of accuracy, calibration returns 30"),
        ((0.9, 0.5, 0.4), "Noise on the weights costs 40 points of accuracy, calibration returns none"),
        ((0.9, 0.885, 0.9), "Noise on the weights costs less than 2 points of accuracy"),
        ((0.9, math.nan, math.nan), "The accuracy under noise is not finite"),
    ],
)
def test_the_title_says_what_noise_costs_and_what_comes_back_at_the_last_step(states, said, write_measurements):
    run = write_measurements([measured(0.1, 0.0, 0.1), measured(*states, step=10)])
    assert title(calibration(run, Figure().add_subplot())) == said


def test_of_several_runs_the_title_names_the_one_that_loses_most(write_measurements):
    runs = {"a": write_measurements([measured(0.9, 0.8, 0.9)]), "b": write_measurements([measured(0.9, 0.3, 0.6)])}
    found = title(calibration(runs, Figure().add_subplot()))
    assert found == "b: noise on the weights costs 60 points of accuracy, calibration returns 30"
