from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from normlens.plot import gradient_flow, gradient_flow_data
from normlens.run.reading import Measurement, Reading


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def measured(step, *energies, **whole):
    readings = [Reading("energy", value, error=0.1, layer=f"l{i}", n=8) for i, value in enumerate(energies)]
    readings += [Reading(name, value) for name, value in whole.items()]
    return Measurement(step, "gradient_flow", readings=tuple(readings))


def draw(runs):
    return gradient_flow(runs, Figure().add_subplot())


def lines(ax, marker):
    return [line for line in ax.lines if line.get_marker() == marker]


def test_disks_are_the_first_measurement_and_diamonds_the_last(write_measurements):
    run = write_measurements([measured(0, 8.0, 4.0, 2.0), measured(5, 9.0, 9.0, 9.0), measured(10, 1.0, 2.0, 3.0)])
    ax = draw(run)
    (first,), (last,) = lines(ax, "o"), lines(ax, "D")
    np.testing.assert_array_equal(first.get_xdata(), [8, 4, 2])
    np.testing.assert_array_equal(last.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(first.get_ydata(), [0, 1, 2])
    assert ax.get_xscale() == "log"
    assert list(gradient_flow_data(run)["step"]) == [0] * 3 + [10] * 3
    assert not lines(draw(write_measurements([measured(0, 8.0, 4.0)])), "D"), "one measurement has no last"


def test_the_dashed_line_has_the_predicted_growth_and_goes_through_the_middle(write_measurements):
    run = write_measurements([measured(0, 99.0, 8.0, 2.0, 2.0, 0.001, growth=2.0, predicted=3.0)])
    ax = draw(run)
    (line,) = [line for line in ax.lines if line.get_linestyle() == "--"]
    x = np.asarray(line.get_xdata())
    np.testing.assert_allclose(x[:-1] / x[1:], 3)
    assert np.prod(x[1:-1]) == pytest.approx(32), "the ends do not move it"
    assert "predicted: × 3 per layer (dashed)" in [text.get_text() for text in ax.texts]
    alone = draw(write_measurements([measured(0, 99.0, 8.0, 2.0, growth=2.0)]))
    assert not [line for line in alone.lines if line.get_linestyle() == "--"]


def test_the_title_is_the_growth_at_first_and_of_few_layers_that_between_the_ends(write_measurements):
    deep = write_measurements([measured(0, 1.0, 2.0, growth=1.46), measured(9, 1.0, 2.0, growth=7.0)])
    few = write_measurements([measured(0, 2.0, 5.0, 8.0)])
    assert title(draw(deep)) == "At first the gradient's square grows × 1.46 per layer towards the input"
    assert title(draw(few)) == "At first the gradient's square shrinks × 0.5 per layer towards the input"
    both = title(draw({"a": deep, "b": few}))
    assert both == "Growth of the squared gradient per layer at first: least b (× 0.5), most a (× 1.46)"


def test_what_is_no_number_is_counted_and_zero_has_no_growth(write_measurements):
    ax = draw(write_measurements([measured(0, math.nan, 1.0)]))
    assert "× 1 not finite" in [text.get_text() for text in ax.texts]
    lost = "How the gradient grows from layer to layer is not a number"
    assert title(ax) == title(draw(write_measurements([measured(0, 0.0, 1.0)]))) == lost
    assert draw(write_measurements([measured(0, 0.0, 0.0)])).get_xscale() == "linear"
