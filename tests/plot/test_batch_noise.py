from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from normlens.plot import batch_noise, batch_noise_data
from normlens.run.reading import Measurement, Reading


def draw(runs):
    return batch_noise(runs, Figure().add_subplot())


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def measured(step=0, effective=16.0, **errors):
    readings = []
    for layer, error in errors.items():
        values = {"statistic_error": error, "effective_values": effective, "values_per_channel": 16.0}
        readings += [Reading(name, value, layer=layer) for name, value in values.items()]
    return Measurement(step, "batch_noise", readings=tuple(readings))


def test_disks_are_batches_and_diamonds_running_means_of_the_last_step(healthy_run):
    ax, data = draw(healthy_run), batch_noise_data(healthy_run)
    assert set(data["step"]) == {300}
    for kind, marker in (("statistic_error", "o"), ("running_mean_gap", "D")):
        (line,) = [line for line in ax.lines if line.get_marker() == marker]
        np.testing.assert_array_equal(line.get_xdata(), data.loc[data["name"] == kind, "value"])
        np.testing.assert_array_equal(line.get_ydata(), [0, 1, 2])
    assert (data["effective_values"] == 4096 / data["mean_noise"]).all()
    assert (data["running_gap_floor"] == 0.02).all()


def test_the_strokes_are_the_error_of_independent_values_and_of_a_single_run_alone(healthy_run, four_runs):
    def strokes(ax):
        segments = [s for c in ax.collections if isinstance(c, LineCollection) for s in c.get_segments()]
        return [s[0][0] for s in segments if s[0][0] == s[1][0] and s[0][1] != s[1][1]]

    assert strokes(draw(healthy_run)) == pytest.approx([1 / 64] * 3)
    assert not strokes(draw(four_runs))


def test_the_title_names_the_noisiest_layer_and_how_few_values_count(healthy_run, four_runs, write_measurements):
    said = "A batch's mean is off by up to 12.5 % of σ, in block3.norm: 64 of its 4096 values count"
    assert title(draw(healthy_run)) == said
    assert title(draw(four_runs)) == "Noisiest batch mean: layer_norm, block3.norm (15.3 % of σ)"
    run = write_measurements([measured(0, a=0.9), measured(5, a=0.25, b=0.125)])
    assert title(draw(run)) == "A batch's mean is off by up to 25 % of σ, in a"
    lost = write_measurements([measured(a=np.nan)])
    assert title(draw(lost)) == "The noise of the batch statistics is not finite in any layer"
