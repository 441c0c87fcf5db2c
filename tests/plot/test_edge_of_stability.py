from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from normlens.plot import edge_of_stability, edge_of_stability_data
from normlens.run.reading import Measurement, Reading


def draw(runs):
    return edge_of_stability(runs, Figure().add_subplot())


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def ratios(write_measurements, *values):
    records = [Measurement(i, "edge_of_stability", readings=(Reading("ratio", r),)) for i, r in enumerate(values)]
    return write_measurements(records)


def test_the_edge_is_a_line_at_one_with_its_name_on_it(healthy_run):
    ax = draw(healthy_run)
    assert any(list(line.get_ydata()) == [1, 1] for line in ax.lines)
    (edge,) = [text for text in ax.texts if text.get_text() == "edge of stability"]
    assert edge.get_position()[1] == 1


def test_the_error_is_the_sharpness_s_in_thresholds(healthy_run):
    data = edge_of_stability_data(healthy_run)
    np.testing.assert_allclose(data["error"], 0.4 / 40)
    np.testing.assert_allclose(data["ratio"], data["sharpness"] / data["threshold"])
    (band,) = draw(healthy_run).collections
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(0.5 + 0.01)


def test_the_title_says_from_when_it_is_at_the_edge_or_how_far_below(healthy_run, four_runs):
    assert title(draw(healthy_run)) == "Below the edge of stability: at most 0.5 of it, at step 300"
    assert title(draw(four_runs)) == "At the edge of stability or beyond: none (from step 240)"
    below = {name: run for name, run in four_runs.items() if name != "none"}
    assert title(draw(below)) == "Below the edge of stability: at most 0.75 of it (layer_norm), at step 300"


def test_a_run_that_reaches_the_edge_says_where_it_ended(write_measurements):
    run = ratios(write_measurements, 0.2, 0.95, 1.1, 1.02)
    assert title(draw(run)) == "At the edge of stability or beyond from step 1; 1.02 of it in the end"


def test_the_axis_is_logarithmic_only_for_ratios_far_from_one(write_measurements):
    assert draw(ratios(write_measurements, 0.5, 2.0)).get_yscale() == "linear"
    assert draw(ratios(write_measurements, 0.01, 2.0)).get_yscale() == "log"
    assert draw(ratios(write_measurements, -1.0, 200.0)).get_yscale() == "linear"


def test_a_sharpness_that_is_not_a_number_is_said(write_measurements):
    assert title(draw(ratios(write_measurements, np.nan))) == "The sharpness is not a number"
