from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from normlens.plot import activation_ridge, activation_ridge_data
from normlens.run.errors import NotRecordedError
from normlens.run.reading import Measurement, Reading
from support.drift_readings import EDGES, distribution_readings


def draw(runs, **settings):
    return activation_ridge(runs, Figure().add_subplot(), **settings)


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


@pytest.fixture
def run_of(write_measurements):
    def run_of(widths, layers=("conv",), drifts=None):
        """A run whose layers' inputs have these widths, step by step, times 1, 2, 3, ... for the layers."""
        rows = []
        for step, width in enumerate(widths):
            readings = [r for i, layer in enumerate(layers) for r in distribution_readings(layer, width * (i + 1))]
            readings += [Reading("w1_first", value, layer=layer) for layer, value in (drifts or {}).items()]
            rows.append(Measurement(step, "activation_drift", readings=tuple(readings)))
        return write_measurements(rows)

    return run_of


def test_densities_integrate_to_the_share_that_is_not_zero(run_of):
    data = activation_ridge_data(run_of([1.0, 2.0]))
    for _, ridge in data.groupby("step"):
        area = (ridge["density"] * np.diff(EDGES)).sum()
        assert area == pytest.approx(1 - ridge["zeros"].iloc[0], abs=1e-9)


def test_a_ridge_is_the_density_over_its_base_line_and_the_highest_covers_two_steps(run_of):
    run = run_of([1.0, 2.0, 4.0])
    (panel,) = draw(run).child_axes
    data = activation_ridge_data(run)
    heights = []
    for row, line in enumerate(panel.lines):
        ridge = data[data["step"] == row]
        np.testing.assert_array_equal(line.get_xdata(), ridge["value"])
        height = row - line.get_ydata()
        heights.append(height)
        np.testing.assert_allclose(height * ridge["density"].max(), ridge["density"] * height.max(), atol=1e-12)
    assert max(h.max() for h in heights) == pytest.approx(2.2)
    # A rectified Gaussian twice as wide is half as high.
    assert heights[1].max() / heights[0].max() == pytest.approx(0.5, rel=0.02)
    assert [text.get_text() for text in panel.texts] == ["50 % zeros", "50 %", "50 %"]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["0", "1", "2"]


def test_the_axis_leaves_out_next_to_nothing(run_of):
    """0.4 % of what is not zero: the quantile 0.996 of |normal|, 2.88 deviations, of the widest ridge."""
    (panel,) = draw(run_of([1.0, 2.0])).child_axes
    low, high = panel.get_xlim()
    assert -0.2 < low < 0.05
    assert 2 * 2.88 < high < 2 * 2.88 * 1.3


def test_one_run_shows_its_layers_and_several_runs_one_layer_over_one_axis(run_of):
    one = run_of([1.0, 2.0], layers=("a", "b"))
    assert [panel.get_title() for panel in draw(one).child_axes] == ["a", "b"]
    assert len(draw(one, layer="b").child_axes) == 1
    runs = {"x": run_of([1.0, 2.0], ("a", "b"), {"a": 0.5, "b": 0.1}), "y": run_of([4.0], ("a", "b"), {"b": 0.7})}
    panels = draw(runs).child_axes
    assert [panel.get_title() for panel in panels] == ["x", "y"]
    assert set(activation_ridge_data(runs)["layer"]) == {"b"}
    assert panels[0].get_xlim() == panels[1].get_xlim()


def test_of_many_layers_and_steps_the_most_drifted_and_evenly_spaced_ones_are_shown(run_of):
    layers = tuple("abcdef")
    run = run_of(np.ones(40), layers, {layer: float(i % 5) for i, layer in enumerate(layers)})
    data = activation_ridge_data(run)
    assert list(dict.fromkeys(data["layer"])) == ["b", "c", "d", "e"]
    steps = np.unique(data["step"])
    assert (len(steps), steps[0], steps[-1]) == (12, 0, 39)
    assert set(np.diff(steps)) == {3, 4}


def test_the_title_gives_the_size_of_what_changed_most(run_of, sick_run):
    # 1 and 3 over root 2, from the middles of bins
    assert title(draw(run_of([1.0, 3.0]))) == "Inputs of conv: rms 0.71 at step 0, 2.13 at step 1"
    assert title(draw(run_of([1.0]))) == "Inputs of conv: rms 0.71 at step 0"
    runs = {"still": run_of([1.0, 1.1]), "moving": run_of([1.0, 2.0])}
    assert title(draw(runs)).startswith("Inputs of conv in moving: rms 0.71 at")
    assert title(draw(sick_run)) == "100 % of the inputs in block2.conv are not finite at step 180"
    several = {"sick": sick_run, "healthy": sick_run}
    assert title(draw(several)).startswith("100 % of the inputs of block2.conv in sick are not finite")


def test_inputs_that_are_all_zero_are_drawn_as_nothing(write_measurements):
    readings = (
        Reading("histogram", np.zeros(128), layer="conv", dims=("bin",)), Reading("histogram_scale", 1.0, layer="conv"),
        Reading("zeros", 1.0, layer="conv"), Reading("nonfinite", 0.0, layer="conv"),
    )  # fmt: skip
    ax = draw(write_measurements([Measurement(0, "activation_drift", readings=readings)]))
    assert not any(math.isnan(y) or y != 0 for line in ax.child_axes[0].lines for y in line.get_ydata())
    assert title(ax) == "Inputs of conv: rms 0 at step 0"
    ax.figure.draw_without_rendering()


def test_a_layer_without_a_distribution_is_named_with_those_that_have_one(run_of):
    with pytest.raises(NotRecordedError, match=r"no distribution of layer 'head'; it has: conv"):
        activation_ridge_data(run_of([1.0]), layer="head")
