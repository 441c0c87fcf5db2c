from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from normlens.plot import singularity, singularity_data
from normlens.run.reading import Measurement, Reading


def draw(runs):
    return singularity(runs, Figure().add_subplot())


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def layer(name, **values):
    values = {"parameters": 100, "units": 4, "channels": 8, "forced": 0, **values}
    return [Reading(what, float(value), layer=name, n=64) for what, value in values.items()]


def test_disks_diamonds_and_ticks_are_the_nullities_of_the_last_step(healthy_run):
    ax = draw(healthy_run)
    data = singularity_data(healthy_run)
    assert set(data["step"]) == {300}
    for kind, marker in (("nullity", "o"), ("predicted", "D"), ("regular", "|")):
        (line,) = [line for line in ax.lines if line.get_marker() == marker]
        np.testing.assert_array_equal(line.get_xdata(), data.loc[data["name"] == kind, "value"])
        np.testing.assert_array_equal(line.get_ydata(), [0, 1, 2])


def test_pale_bars_reach_from_zero_to_what_samples_force(healthy_run):
    bars = [line for line in draw(healthy_run).lines if len(line.get_xdata()) == 2 and line.get_alpha() == 0.3]
    assert [list(bar.get_xdata()) for bar in bars] == [[0, 0], [0, 0], [0, 40]]


def test_the_title_names_the_layer_with_the_largest_share_beyond_the_regular(sick_run, four_runs, write_measurements):
    assert title(draw(sick_run)) == "block2.relu: 163 of 228 directions avoidably null"
    assert title(draw(four_runs)) == "none, block2.relu: 163 of 228 directions avoidably null"
    fine = [*layer("a", nullity=10, regular=10), *layer("b", nullity=20, regular=3, forced=20)]
    run = write_measurements([Measurement(0, "singularity", readings=tuple(fine))])
    assert title(draw(run)) == "No layer is more singular than its structure and samples make it"


def test_where_nothing_is_predicted_what_is_beyond_the_samples_counts(write_measurements):
    readings = tuple(layer("a", nullity=30, forced=20))
    ax = draw(write_measurements([Measurement(0, "singularity", readings=readings)]))
    assert title(ax) == "a: 10 of 100 directions avoidably null"
    assert "of 100\n(4/8 units)" in [text.get_text() for text in ax.texts]
