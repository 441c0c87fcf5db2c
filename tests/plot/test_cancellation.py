from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from normlens.plot import cancellation, cancellation_data
from normlens.run.reading import Measurement, Reading


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def measured(step, **layers):
    names = ("cancellation", "within_samples", "across_samples")
    readings = [
        Reading(name, value, error=0.5, layer=layer)
        for layer, values in layers.items()
        for name, value in zip(names, values, strict=False)
    ]
    return Measurement(step, "cancellation", readings=(*readings, Reading("absolute", 9.0, layer="a")))


def draw(runs):
    return cancellation(runs, Figure().add_subplot())


def test_marks_are_the_three_ratios_of_the_last_step(write_measurements):
    run = write_measurements([measured(0, a=(99.0, 9.0, 9.0)), measured(10, a=(40.0, 2.0, 6.0), b=(4.0,))])
    ax = draw(run)
    for marker, values in (("o", [40, 4]), ("D", [2]), ("s", [6])):
        (line,) = [line for line in ax.lines if line.get_marker() == marker]
        np.testing.assert_array_equal(line.get_xdata(), values)
        np.testing.assert_array_equal(line.get_ydata(), range(len(values)))
    assert set(cancellation_data(run)["step"]) == {10}
    assert ax.get_xlim()[0] < 1, "the axis holds 1, where nothing cancels"


def test_the_title_names_the_layer_where_most_cancels(write_measurements):
    run, other = (write_measurements([measured(0, a=(4.0,), b=(size,))]) for size in (25.0, 2.0))
    assert title(draw(run)) == "Most cancels in b: 1 part in 25 is left"
    assert title(draw({"x": other, "y": run})) == "Most cancels in y, b: 1 part in 25 is left"


def test_what_cancels_to_nothing_is_said(write_measurements):
    run = write_measurements([measured(0, a=(math.inf,), b=(math.nan,))])
    assert title(draw(run)) == "The gradients' parts cancel to nothing, or are not finite, in every layer"
    assert any("× 2" in text.get_text() for text in draw(run).texts)
