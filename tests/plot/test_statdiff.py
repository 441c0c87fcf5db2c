from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from normlens.plot import statdiff, statdiff_data
from normlens.run.reading import Measurement, Reading


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def test_disks_are_means_and_diamonds_deviations_of_the_last_step(sick_run):
    ax = statdiff(sick_run, Figure().add_subplot())
    data = statdiff_data(sick_run)
    assert set(data["step"]) == {300}
    for kind, marker in (("statdiff_mean", "o"), ("statdiff_std", "D")):
        (line,) = [line for line in ax.lines if line.get_marker() == marker]
        np.testing.assert_array_equal(line.get_xdata(), data.loc[data["name"] == kind, "value"])
        np.testing.assert_array_equal(line.get_ydata(), [0, 1, 2])


def test_the_title_names_the_furthest_layer(healthy_run, four_runs):
    assert (
        title(statdiff(four_runs, Figure().add_subplot())) == "Furthest from batch norm: layer_norm, block3.norm (1.5)"
    )
    assert title(statdiff(healthy_run, Figure().add_subplot())) == "Every layer's statistics are batch norm's, to 0.01"


def test_what_is_not_finite_is_counted_in_the_figure(write_measurements):
    readings = tuple(Reading("statdiff_mean", v, layer=f"n{i}") for i, v in enumerate((np.nan, 0.5)))
    ax = statdiff(write_measurements([Measurement(0, "elimination", readings=readings)]), Figure().add_subplot())
    assert [text.get_text() for text in ax.texts] == ["× 1 not finite"]
    assert title(ax) == "Furthest from batch norm: n1 (0.5)"
