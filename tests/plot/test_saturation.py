from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from normlens.plot import saturation, saturation_data
from normlens.run.reading import Measurement, Reading


def draw(runs):
    return saturation(runs, Figure().add_subplot())


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def measured(step=0, **shares):
    readings = [Reading("saturated", share, layer=layer, error=0.1, n=16) for layer, share in shares.items()]
    return Measurement(step, "saturation", readings=tuple(readings))


def disks(ax):
    return [line for line in ax.lines if line.get_marker() == "o"]


def test_disks_are_the_shares_at_the_last_step_in_the_order_of_the_layers(write_measurements):
    run = write_measurements([measured(0, a=0.9, b=0.8), measured(30, a=0.25, b=0.75)])
    (line,) = disks(draw(run))
    np.testing.assert_array_equal(line.get_xdata(), [0.25, 0.75])
    np.testing.assert_array_equal(line.get_ydata(), [0, 1])
    assert saturation_data(run)["step"].unique().tolist() == [30]


def test_bars_are_one_standard_error_long_to_either_side(write_measurements):
    (bars,) = draw(write_measurements([measured(a=0.25)])).collections
    (segment,) = bars.get_segments()
    np.testing.assert_allclose(segment[:, 0], [0.15, 0.35])


@pytest.mark.parametrize(("shares", "answer"), [
    ({"a": 0.25, "b": 0.75}, "Most saturated: b (75 % of its values)"),
    ({"a": math.nan}, "The share of saturated values is not finite in any layer"),
])  # fmt: skip
def test_the_title_names_the_most_saturated_layer(write_measurements, shares, answer):
    assert title(draw(write_measurements([measured(**shares)]))) == answer


def test_with_several_runs_the_title_names_the_run(four_runs):
    assert title(draw(four_runs)).startswith("Most saturated: layer_norm, block3.relu")
