from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from normlens.plot import variance_shift, variance_shift_data
from normlens.run.reading import Measurement, Reading


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def drawn(ax, marker):
    return [line for line in ax.lines if line.get_marker() == marker]


def measured(step, **layers):
    readings = []
    for layer, (shift, running, *predicted) in layers.items():
        readings.append(Reading("shift", shift, layer=layer, error=0.05, n=256))
        readings.append(Reading("eval_to_running", running, layer=layer, error=0.05, n=256))
        readings += [Reading("shift_predicted", value, layer=layer) for value in predicted]
    return Measurement(step, "variance_shift", readings=tuple(readings))


def test_disks_are_training_over_use_diamonds_use_over_running_and_strokes_predictions(write_measurements):
    run = write_measurements([measured(0, a=(9.0, 9.0)), measured(30, a=(1.5, 0.7, 1.4), b=(1.1, 0.9))])
    ax = variance_shift(run, Figure().add_subplot())
    assert set(variance_shift_data(run)["step"]) == {30}
    (disks,), (diamonds,) = drawn(ax, "o"), drawn(ax, "D")
    assert disks.get_xdata().tolist() == [1.5, 1.1]
    assert diamonds.get_xdata().tolist() == [0.7, 0.9]
    strokes = np.concatenate([line.get_xdata() for line in drawn(ax, "|")])
    assert strokes[np.isfinite(strokes)].tolist() == [1.4]
    bars = [segment[:, 0] for artist in ax.collections for segment in artist.get_segments()]
    np.testing.assert_allclose(bars[0], [1.5 - 1.96 * 0.05, 1.5 + 1.96 * 0.05])
    (one,) = [line for line in drawn(ax, "None") if line.get_linestyle() == "-"]
    assert one.get_xdata()[0] == 1


def test_the_axis_is_logarithmic_with_one_in_the_middle_and_holds_all(write_measurements):
    ax = variance_shift(write_measurements([measured(0, a=(20.0, 0.5))]), Figure().add_subplot())
    low, high = ax.get_xlim()
    assert ax.get_xscale() == "log"
    np.testing.assert_allclose(low * high, 1)
    assert high > 20
    narrow = variance_shift(write_measurements([measured(0, a=(1.01, 0.99))]), Figure().add_subplot())
    assert narrow.get_xlim()[1] > 1.5  # a percent is not blown up


def test_the_title_names_the_largest_shift_on_either_side(write_measurements):
    run = write_measurements([measured(0, a=(1.5, 0.7), b=(0.5, 0.7))])
    assert title(variance_shift(run, Figure().add_subplot())) == "Variance in training over that in use: 0.5 at b"
    calm = write_measurements([measured(0, a=(1.02, 0.7))])
    assert title(variance_shift(calm, Figure().add_subplot())).endswith("agree to 5 % in every batch norm")
    both = variance_shift({"x": calm, "y": run}, Figure().add_subplot())
    assert title(both) == "Variance in training over that in use: 0.5 at y, b"


def test_what_is_not_finite_is_counted(write_measurements):
    run = write_measurements([measured(0, a=(math.nan, 0.7), b=(1.5, 0.9))])
    ax = variance_shift(run, Figure().add_subplot())
    assert "× 1 not finite" in [text.get_text() for text in ax.texts]
    lost = write_measurements([measured(0, a=(math.nan, 0.7))])
    assert title(variance_shift(lost, Figure().add_subplot())) == "The variance shift is not known in any layer"
