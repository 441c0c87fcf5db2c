from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from normlens.plot import gradient_predictiveness, gradient_predictiveness_data
from normlens.run.reading import Measurement, Reading


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def measured(step, loss=(1.0, 2.0), change=(0.1, 0.4), norm=2.0):
    values = {"loss_min": loss[0], "loss_max": loss[1], "change_min": change[0], "change_max": change[1]}
    readings = [Reading(name, value, n=8) for name, value in (values | {"gradient_norm": norm}).items()]
    return Measurement(step, "gradient_predictiveness", readings=tuple(readings))


def draw(runs):
    return gradient_predictiveness(runs, Figure().add_subplot())


def test_the_bands_reach_from_the_smallest_to_the_largest_and_changes_are_of_the_norm(write_measurements):
    run = write_measurements([measured(0), measured(10, (0.5, 0.75), (0.2, 0.8), 4.0)])
    for panel, low, high in zip(draw(run).child_axes, ([1, 0.5], [0.05, 0.05]), ([2, 0.75], [0.2, 0.2]), strict=True):
        lower, upper = panel.lines
        np.testing.assert_allclose(lower.get_ydata(), low)
        np.testing.assert_allclose(upper.get_ydata(), high)
        (band,) = panel.collections
        heights = band.get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == pytest.approx((min(low), max(high)))
    data = gradient_predictiveness_data(run)
    assert list(data["name"].unique()) == ["loss_min", "loss_max", "change_min", "change_max"]


def test_the_title_gives_the_last_change_and_compares_runs(write_measurements):
    near, far = write_measurements([measured(0), measured(9, norm=4.0)]), write_measurements([measured(0, norm=0.2)])
    assert title(draw(near)) == "Along the probed steps the gradient changes by up to 0.1 of its norm"
    both = title(draw({"far": far, "near": near}))
    assert both == "Final change of the gradient over its norm: smallest near (0.1), largest far (2)"


def test_a_gradient_that_is_zero_or_no_number_has_no_change(write_measurements):
    for sick in (measured(5, change=(0.0, 0.0), norm=0.0), measured(5, change=(np.nan, np.nan))):
        run = write_measurements([sick])
        said = "How the gradient changes along itself is not known: it is zero or not finite"
        assert title(draw(run)) == said
        assert any(text.get_text() == "× not finite" for text in draw(run).child_axes[1].texts)
    assert title(draw(write_measurements([measured(0), sick]))).endswith("by up to 0.2 of its norm")


def test_axes_are_logarithmic_over_more_than_a_decade_only(write_measurements):
    wide, narrow = measured(0, (0.1, 2.0), (0.01, 0.4)), measured(0, (1.0, 2.0), (0.1, 0.4))
    assert [panel.get_yscale() for panel in draw(write_measurements([wide])).child_axes] == ["log", "log"]
    assert [panel.get_yscale() for panel in draw(write_measurements([narrow])).child_axes] == ["linear", "linear"]
