from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from normlens.plot import covariate_shift, covariate_shift_data
from normlens.run.reading import Measurement, Reading


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def measured(step, shifts, cosines):
    readings = [Reading("layers", float(len(shifts)))]
    for i, (shift, cosine) in enumerate(zip(shifts, cosines, strict=True)):
        readings += [Reading("shift", shift, layer=f"l{i}"), Reading("cosine", cosine, layer=f"l{i}")]
    return Measurement(step, "covariate_shift", readings=tuple(readings))


def draw(runs):
    return covariate_shift(runs, Figure().add_subplot())


def test_the_lines_are_medians_over_layers_and_the_bands_reach_all_of_them(write_measurements):
    run = write_measurements([measured(0, (1.0, 3.0, 8.0), (0.9, 0.5, -0.5)), measured(10, (1.0, 1.0), (1.0, 0.0))])
    data = covariate_shift_data(run).set_index(["step", "name"])
    assert tuple(data.loc[(0, "shift"), ["value", "lowest", "highest"]]) == (3, 1, 8)
    above, below = draw(run).child_axes
    for panel, middle, ends in ((above, [3, 1], (1, 8)), (below, [0.5, 0.5], (-0.5, 1))):
        np.testing.assert_array_equal(panel.lines[0].get_ydata(), middle)
        heights = panel.collections[0].get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == ends
    assert above.get_yscale() == "log"


def test_the_title_is_the_last_angle_and_compares_runs(write_measurements):
    few = write_measurements([measured(0, (1.0,), (0.0,)), measured(5, (0.0,), (math.cos(math.radians(30)),))])
    many = write_measurements([measured(0, (1.0,), (-1.0,))])
    assert title(draw(few)) == "A step of the layers below turns a layer's gradient by 30°"
    assert title(draw({"a": many, "b": few})) == "Turn of a gradient by the layers below: least b (30°), most a (180°)"
    assert draw(few).child_axes[0].get_yscale() == "linear", "a shift of 0 has no logarithm"


def test_a_layer_that_is_no_number_is_not_left_out_of_the_median(write_measurements):
    run = write_measurements([measured(0, (1.0, 2.0), (0.5, math.nan))])
    assert covariate_shift_data(run).set_index("name")["value"].isna()["cosine"]
    assert title(draw(run)) == "How the layers turn each other's gradients is not a number"
