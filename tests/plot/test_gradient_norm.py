from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from normlens.plot import gradient_norm
from normlens.run.reading import Measurement, Reading


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def test_gradient_is_solid_and_update_dashed_on_a_log_axis(healthy_run):
    ax = gradient_norm(healthy_run, Figure().add_subplot())
    frame = healthy_run.frame("training_curve")
    lines = {line.get_linestyle(): line for line in ax.lines}
    for style, name in (("-", "gradient_norm"), ("--", "update_norm")):
        rows = frame[frame["name"] == name]
        np.testing.assert_array_equal(lines[style].get_xdata(), rows["step"])
        np.testing.assert_array_equal(lines[style].get_ydata(), rows["value"])
    assert ax.get_yscale() == "log"


def test_the_title_gives_the_ends_the_extremes_or_the_first_step_without_a_number(healthy_run, sick_run, four_runs):
    titles = [title(gradient_norm(runs, Figure().add_subplot())) for runs in (healthy_run, sick_run, four_runs)]
    assert titles == [
        "Gradient norm 2.07 → 0.108",
        "The gradient is not finite from step 180",
        "Final gradient norm: smallest batch_norm (0.108), largest none (0.887)",
    ]


def test_a_gradient_of_zero_does_not_break_the_axis(write_measurements):
    zero = [Measurement(i, "training_curve", readings=(Reading("gradient_norm", 0.0),)) for i in range(2)]
    ax = gradient_norm(write_measurements(zero), Figure().add_subplot())
    assert ax.get_yscale() == "linear"
    ax.figure.draw_without_rendering()
