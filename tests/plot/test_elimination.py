from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from normlens.plot import elimination, elimination_data
from normlens.plot.elimination import NEARLY_OFF
from normlens.run.reading import Measurement, Reading


def draw(runs):
    return elimination(runs, Figure().add_subplot())


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def layer(write_measurements, offsets, rates=None):
    arrays = [Reading("offset", np.array(offsets), layer="relu", dims=("channel",))]
    if rates is not None:
        arrays.append(Reading("deactivation_rate", np.array(rates), layer="relu", dims=("channel",)))
    return write_measurements([Measurement(5, "elimination", readings=tuple(arrays))])


def test_below_the_threshold_a_gaussian_channel_is_active_for_one_percent():
    assert 0.5 * math.erfc(-NEARLY_OFF / math.sqrt(2)) == pytest.approx(0.01, rel=2e-3)


def test_dead_channels_are_crosses_at_their_offsets_and_layers_go_down(sick_run):
    ax = draw(sick_run)
    data = elimination_data(sick_run)
    crosses = {int(line.get_ydata()[0]): line.get_xdata() for line in ax.lines if line.get_marker() == "x"}
    dead = data[data["dead"] & (data["layer"] == "block2.relu")]["offset"]
    assert sorted(crosses) == [1, 2]  # block2 and block3, counted from the top
    finite = dead[np.isfinite(dead)]
    assert sorted(crosses[1]) == pytest.approx(sorted([ax.get_xlim()[0], *finite]))  # minus infinity: at the edge
    assert [text.get_text() for text in ax.get_yticklabels()] == ["block1.relu", "block2.relu", "block3.relu"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_the_shaded_region_ends_at_the_threshold(healthy_run):
    ax = draw(healthy_run)
    (shade,) = ax.patches
    assert shade.get_x() + shade.get_width() == pytest.approx(NEARLY_OFF)
    assert "Gaussian channel is active < 1 %" in ax.get_xlabel()


def test_bars_are_quantiles_of_the_live_channels(write_measurements):
    offsets = [*np.linspace(-1, 1, 21), -6.0]
    ax = draw(layer(write_measurements, offsets, [0.5] * 21 + [1.0]))
    bars = [sorted(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    assert [-0.9, 0.9] in [pytest.approx(bar) for bar in bars]
    assert [-0.5, 0.5] in [pytest.approx(bar) for bar in bars]


def test_the_title_names_the_worst_layer_or_says_that_none_is_dead(healthy_run, sick_run, four_runs):
    assert title(draw(sick_run)) == "block2.relu: 9 of 32 channels dead at step 300"
    assert title(draw(four_runs)) == "Dead channels: none (12 of 96); no other run has any"
    lowest = elimination_data(healthy_run)["offset"].min()
    assert title(draw(healthy_run)).startswith("No channel is dead; the lowest offset is −1.44 in block2.relu")
    assert f"{lowest:.3g}" == "-1.44"


def test_infinite_and_missing_offsets_are_drawn_and_do_not_raise(write_measurements):
    ax = draw(layer(write_measurements, [-np.inf, np.inf, np.nan, 0.0], [1.0, 0.0, 0.5, 0.5]))
    ax.figure.draw_without_rendering()
    left, right = ax.get_xlim()
    assert any(line.get_marker() == "x" and line.get_xdata()[0] == left for line in ax.lines)
    assert any(line.get_marker() == "$?$" for line in ax.lines)
    assert title(ax) == "relu: 1 of 4 channels dead at step 5"
    assert right < 10


def test_without_rates_no_channel_is_called_dead(write_measurements):
    assert not elimination_data(layer(write_measurements, [-9.0, 0.0]))["dead"].any()


def test_only_the_last_step_is_shown(sick_run):
    assert set(elimination_data(sick_run)["step"]) == {300}
