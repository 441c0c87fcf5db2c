from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from normlens.plot import self_normalization, self_normalization_data
from normlens.run.reading import Measurement, Reading


def draw(runs):
    return self_normalization(runs, Figure().add_subplot())


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def test_each_layer_of_the_last_step_is_a_disk_at_its_sensitivity(healthy_run):
    ax, data = draw(healthy_run), self_normalization_data(healthy_run)
    assert set(data["step"]) == {300}
    (disks,) = [line for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_array_equal(disks.get_xdata(), data["value"])
    order = [text.get_text() for text in ax.get_yticklabels()]
    assert order == ["block1.conv", "block2.conv", "block3.conv", "head"]
    np.testing.assert_array_equal(disks.get_ydata(), [order.index(layer) for layer in data["layer"]])


def test_zero_and_one_are_lines(healthy_run):
    marks = [list(line.get_xdata()) for line in draw(healthy_run).lines if line.get_marker() != "o"]
    assert marks == [[0, 0], [1, 1]]


def test_the_title_counts_the_layers_that_normalize_themselves(healthy_run, four_runs):
    assert title(draw(healthy_run)) == "3 of 4 layers normalize their own gain away; most sensitive: head (1)"
    counts = "batch_norm 3 of 4, group_norm 1 of 4, layer_norm 1 of 4, none 0 of 4"
    assert title(draw(four_runs)) == f"Layers that normalize their own gain away: {counts}"


def test_what_is_not_finite_is_counted_and_does_not_count_as_normalized(write_measurements, sick_run):
    ax = draw(sick_run)
    assert [text.get_text() for text in ax.texts] == ["× 3 not finite"]
    assert title(ax) == "0 of 4 layers normalize their own gain away; most sensitive: head (1)"
    lost = (Reading("gain_sensitivity", np.nan, layer="a"),)
    run = write_measurements([Measurement(0, "self_normalization", readings=lost)])
    assert title(draw(run)) == "The sensitivity is not finite in any layer"
