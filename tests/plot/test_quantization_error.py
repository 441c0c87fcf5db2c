from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from normlens.plot import quantization_error, quantization_error_data
from normlens.run.reading import Measurement, Reading


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def measured(step, **largest):
    readings = [Reading("max", value, layer=layer, units="LSB") for layer, value in largest.items()]
    readings += [Reading("rms", value / 3, layer=layer, units="LSB") for layer, value in largest.items()]
    return Measurement(step, "quantization_error", readings=tuple(readings))


def test_disks_are_rms_and_diamonds_maxima_of_the_last_step(healthy_run):
    ax = quantization_error(healthy_run, Figure().add_subplot())
    data = quantization_error_data(healthy_run)
    assert set(data["step"]) == {300}
    for kind, marker in (("rms", "o"), ("max", "D")):
        (line,) = [line for line in ax.lines if line.get_marker() == marker]
        np.testing.assert_array_equal(line.get_xdata(), data.loc[data["name"] == kind, "value"])
        np.testing.assert_array_equal(line.get_ydata(), [0, 1, 2])


def test_the_thin_line_is_the_rms_of_rounding(healthy_run):
    ax = quantization_error(healthy_run, Figure().add_subplot())
    assert [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "None"] == [pytest.approx(12**-0.5)]
    assert [text.get_text() for text in ax.texts] == ["rounding alone"]


def test_the_title_names_the_layer_with_the_largest_error(write_measurements):
    run = write_measurements([measured(0, a=9.0), measured(10, a=1.5, b=2.25)])
    assert title(quantization_error(run, Figure().add_subplot())) == "Largest error: 2.25 LSB, in b"
    good = write_measurements([measured(0, a=0.9, b=1.0)])
    said = "No quantized batch norm is off by more than 1 LSB"
    assert title(quantization_error(good, Figure().add_subplot())) == said
    both = quantization_error({"x": good, "y": run}, Figure().add_subplot())
    assert title(both) == "Largest error: 2.25 LSB, in y, b"


def test_what_is_not_finite_is_counted_in_the_figure(write_measurements):
    ax = quantization_error(write_measurements([measured(0, a=np.nan, b=0.5)]), Figure().add_subplot())
    assert "× 2 not finite" in [text.get_text() for text in ax.texts]
    lost = quantization_error(write_measurements([measured(0, a=np.nan)]), Figure().add_subplot())
    assert title(lost) == "The quantization error is not finite in any layer"
