from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from normlens.plot import training_curve, training_curve_data
from normlens.run.reading import Measurement, Reading


def draw(runs):
    ax = training_curve(runs, Figure().add_subplot())
    return ax, ax.child_axes or [ax]


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def losses(write_measurements, *values, **names):
    return write_measurements(
        [Measurement(i, "training_curve", readings=(Reading("loss", v),)) for i, v in enumerate(values)], names
    )


def test_loss_and_both_accuracies_are_the_records(healthy_run):
    _, (upper, lower) = draw(healthy_run)
    frame = healthy_run.frame("training_curve")
    loss = frame[frame["name"] == "loss"]
    np.testing.assert_array_equal(upper.lines[0].get_xdata(), loss["step"])
    np.testing.assert_array_equal(upper.lines[0].get_ydata(), loss["value"])
    by_style = {line.get_linestyle(): line.get_ydata() for line in lower.lines}
    np.testing.assert_array_equal(by_style[":"], frame.loc[frame["name"] == "accuracy", "value"])
    test = healthy_run.frame("user")
    np.testing.assert_array_equal(by_style["-"], test.loc[test["name"] == "test_accuracy", "value"])
    assert upper.get_yscale() == "log"


def test_the_title_says_what_became_of_the_loss(healthy_run, sick_run, four_runs):
    assert title(draw(healthy_run)[0]) == "Loss 2.3 → 0.12, test accuracy 93.0 %"
    assert title(draw(sick_run)[0]) == "The loss is not finite from step 180"
    assert title(draw(four_runs)[0]) == "Final loss: lowest batch_norm (0.12), highest none (0.986)"


def test_of_several_runs_the_one_whose_loss_is_not_finite_is_named(healthy_run, sick_run):
    assert title(draw({"well": healthy_run, "ill": sick_run})[0]) == "The loss is not finite: ill from step 180"


@pytest.mark.parametrize("worst", [0.0, -1.0])
def test_a_loss_that_is_not_positive_gets_a_linear_axis(write_measurements, worst):
    ax, (panel,) = draw(losses(write_measurements, 1.0, worst))
    assert panel is ax
    assert panel.get_yscale() == "linear"


def test_without_an_accuracy_the_loss_fills_the_axes(write_measurements):
    ax, panels = draw(losses(write_measurements, 1.0, 0.5))
    assert panels == [ax]


def test_a_loss_that_is_never_finite_is_still_drawn_as_crosses(write_measurements):
    ax, _ = draw(losses(write_measurements, np.nan, np.inf))
    assert title(ax) == "The loss is not finite from step 0"
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), [0, 1])
    ax.figure.draw_without_rendering()


def test_the_data_have_the_errors_and_sample_sizes(healthy_run):
    data = training_curve_data(healthy_run)
    assert list(data.columns) == ["run", "step", "name", "value", "error", "n"]
    assert set(data["name"]) == {"loss", "accuracy", "test_accuracy"}
    assert (data.loc[data["name"] == "loss", "n"] == 256).all()
